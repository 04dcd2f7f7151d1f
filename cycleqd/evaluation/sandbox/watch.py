"""One thread that looks at every running box 40 times a second and kills those beyond their limits.

The kernel limits single processes; time by the clock, and memory and processor time of a whole tree, are counted here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cycleqd.evaluation.sandbox.limits import Limits, Reason

_INTERVAL = 0.025
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What a tree of processes uses now: resident bytes, processor seconds (with its reaped children's), processes."""

    memory: int = 0
    cpu: float = 0.0
    processes: int = 0


def children(pid: int) -> list[int]:
    """The child processes of all threads of `pid`, empty when it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 (twice as fast, and this runs all the time)
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`. Nothing escapes a pid name space: orphans fall to its first process."""
    waiting = children(pid)
    while waiting:
        current = waiting.pop()
        yield current
        waiting += children(current)


def stop(roots: Sequence[int]) -> list[int]:
    """Stop (SIGSTOP) every process below `roots`, also what they start meanwhile; returns them, parents first."""
    stopped: list[int] = []
    while new := [pid for root in roots for pid in descendants(root) if pid not in stopped]:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped += new
    return stopped


def usage(pid: int) -> Usage:
    """Measure the tree below `pid` (the bwrap outside the box, itself not counted)."""
    memory, cpu, processes = 0, 0, 0
    for process in descendants(pid):
        try:
            stat = Path(f"/proc/{process}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu += sum(map(int, fields[11:15]))
        memory += int(fields[21]) * _PAGE
        processes += 1
    return Usage(memory, cpu / _TICK, processes)


@dataclass
class Watched:
    """A tree under watch. `reason` is set once, before the kill. `spent`: processor time that does not count."""

    pid: int
    limits: Limits
    kill: Callable[[int], None]
    reason: Reason = ""
    spent: float = 0.0
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.limits.wall

    def check(self) -> None:
        """Read the tree's use from /proc, and kill it if that is beyond a limit."""
        now = usage(self.pid)
        if time.monotonic() > self.deadline:
            self.stop("wall")
        elif now.memory > self.limits.memory:
            self.stop("memory")
        elif now.cpu - self.spent > self.limits.cpu:
            self.stop("cpu")
        elif now.processes > self.limits.processes + 4:  # the box's init and the programs that enter it count here
            self.stop("processes")

    def stop(self, reason: Reason) -> None:
        """Kill the tree; the first reason stays."""
        self.reason = self.reason or reason
        self.kill(self.pid)


class Watcher:
    """Holds the trees under watch and the thread that looks at them; the thread sleeps while there are none."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, watched: Watched) -> None:
        """Watch the tree from now on."""
        with self._change:
            self._watched.append(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="sandbox-watcher", daemon=True)
                self._thread.start()
            self._change.notify()

    def remove(self, watched: Watched) -> None:
        """Stop watching: call before the process is reaped, so that its number cannot have gone to another."""
        with self._change:
            self._watched = [other for other in self._watched if other is not watched]

    def rearm(self, watched: Watched, limits: Limits) -> None:
        """Put a tree that goes on under new limits, counted from now."""
        spent = usage(watched.pid).cpu
        with self._change:
            watched.limits, watched.spent, watched.deadline = limits, spent, time.monotonic() + limits.wall

    def _loop(self) -> None:
        while True:
            with self._change:
                while not self._watched:
                    self._change.wait()
                for watched in self._watched:
                    watched.check()
            time.sleep(_INTERVAL)


WATCHER = Watcher()
