"""One measured process at a time, contenders in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.weights.models import MEGABYTE


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds of the work itself, CPU seconds, peak memory (ru_maxrss, mapped files included)."""

    seconds: float
    cpu: float
    peak_mb: float


def forget(folder: Path) -> None:
    """Write a folder's dirty pages back and drop it from the page cache, so that the next read comes from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command: list[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Run a process to its end. One that prints a JSON object with "seconds" has timed itself, without its start."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    last = text.strip().splitlines()[-1] if text.strip() else ""
    seconds = json.loads(last)["seconds"] if last.startswith("{") else elapsed
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MEGABYTE)


def alternate(contenders: Mapping[str, Callable[[], Measured]], repeats: int) -> dict[str, Measured]:
    """Run the contenders in turn `repeats` times; the median of each figure."""
    runs: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            runs[name].append(run())
            found = runs[name][-1]
            print(f"    {name}: {found.seconds:.1f} s, {found.cpu:.1f} s CPU, {found.peak_mb:.0f} MB", flush=True)
    fields = ("seconds", "cpu", "peak_mb")
    return {
        name: Measured(*(statistics.median(getattr(run, field) for run in found) for field in fields))
        for name, found in runs.items()
    }


def work(name: str, models: str, out: str, threads: int, device: str = "cpu") -> list[str]:
    """The command of one operation in a process of its own (see `benchmarks.weights.operations`)."""
    return [sys.executable, "-m", "benchmarks.weights.operations", name, models, out, str(threads), device]


def compare(found: Mapping[str, Measured], moved: float) -> None:
    """Print a merge's speed as a share of a copy's, `moved` megabytes each."""
    copy, merge = found["copy"], found["merge"]
    print(f"  copy {moved / copy.seconds:.0f} MB/s, merge {moved / merge.seconds:.0f} MB/s: "
          f"{copy.seconds / merge.seconds:.0%} of the copy's speed; peak {merge.peak_mb:.0f} MB")  # fmt: skip
