"""Processes of tests: which ones an evolution has, and one that is killed at a moment of our choice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_KILLER = """
import os, signal, sys, threading

def watch(frame, event, argument):
    global left
    name = argument.__qualname__ if event.startswith("c_") else frame.f_code.co_qualname
    left -= (event, name) == ({event!r}, {name!r})
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

left = {times}
threading.setprofile(watch)
sys.setprofile(watch)
"""


def processes_of(folder: Path) -> list[int]:
    """Processes whose arguments or environment name the evolution's folder: its services, its driver and its tasks."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if os.fsencode(folder) in known and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def wait_for_none(folder: Path) -> None:
    deadline = time.monotonic() + 200  # a warm process notices after its imports
    while processes_of(folder):
        assert time.monotonic() < deadline, f"still running: {processes_of(folder)}"
        time.sleep(0.1)


def run_until(event: str, name: str, code: str, folder: Path, times: int = 1) -> None:
    """Run Python code, with its temporary files in the folder, in a process that kills itself at an event.

    The event is one of `sys.setprofile`: the call or return of a function (c_call, c_return: a built-in one) of this
    qualified name, for the `times`-th time.
    """
    killer = _KILLER.format(event=event, name=name, times=times)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    ended = subprocess.run(
        [sys.executable, "-c", killer + code], env=environment | {"TMPDIR": str(folder)}, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL
