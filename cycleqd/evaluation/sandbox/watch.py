"""One thread that looks at every running box 40 times a second and kills those beyond their limits.

The kernel limits single processes; time by the clock, and memory and processor time of a whole tree, are counted here.
The clock of a box stands still while it waits for a processor, so that a busy machine ends nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cycleqd.evaluation.sandbox import buffers
from cycleqd.evaluation.sandbox.limits import Limits, Reason

_INTERVAL = 0.025
_BIRTH = 0.001
_PATIENCE = 20  # times its limit by the clock that a box is left alone, however long it waits for a processor
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What processes use now.

    `memory`: bytes, resident and in the buffers of sockets. `cpu`: processor seconds, with reaped children's.
    `running`: whether one of them uses a processor or waits for one. `own`: processor ticks of each, by (number,
    start).
    """

    memory: int = 0
    cpu: float = 0.0
    processes: int = 0
    running: bool = False
    own: Mapping[tuple[int, int], int] = field(default_factory=dict)


def kill(process: int) -> None:
    """Kill a process, unless it has ended; with the first process of a box everything in the box dies.

    Args:
        process: Its pidfd.
    """
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The child processes of all threads of a process, empty when it is gone.

    Args:
        pid: The process.
    """
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 (twice as fast, and this runs all the time)
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def descendants(*roots: int) -> Iterator[int]:
    """Every process below the roots. Nothing escapes a pid name space: orphans fall to its first process.

    Args:
        roots: Processes, none below another; not among the result.
    """
    waiting = [child for root in roots for child in children(root)]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += children(current)


def stop(roots: Sequence[int]) -> list[int]:
    """Stop (SIGSTOP) every process below the roots and all that they start meanwhile; returns them, parents first.

    Args:
        roots: Processes, which themselves go on.
    """
    stopped: list[int] = []
    while new := [pid for pid in descendants(*roots) if pid not in stopped]:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped += new
    return stopped


def usage(roots: Sequence[int]) -> Usage:
    """What all processes below the roots use together.

    Args:
        roots: The processes outside the box above its own, as bwrap; not counted.
    """
    memory, cpu, processes, running = 0, 0, 0, False
    own = dict[tuple[int, int], int]()
    for process in descendants(*roots):
        try:
            stat = Path(f"/proc/{process}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu += sum(map(int, fields[11:15]))
        own[process, int(fields[19])] = int(fields[11]) + int(fields[12])
        memory += int(fields[21]) * _PAGE
        if not processes:  # all of a box share a network
            memory += buffers.most(process)
        running = running or fields[0] == b"R" or (fields[17] != b"1" and _thread_runs(process))
        processes += 1
    return Usage(memory, cpu / _TICK, processes, running, own)


def _thread_runs(process: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{process}/task"):  # noqa: PTH208
            stat = Path(f"/proc/{process}/task/{thread}/stat").read_bytes()
            if stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] == b"R":
                return True
    return False


class Spent:
    """Processor time that processes have used since this began, also of those that have gone.

    A parent that ignores the end of its children gets none of their time, so what they were seen to use is kept; and as
    most that live shorter than a look are never seen, each that was started counts as `_BIRTH` seconds at least.
    """

    def __init__(self, now: Usage) -> None:
        self._before = now
        self._own = dict(now.own)
        self._depth = max((_numbers(pid)[0] for pid, _ in now.own), default=0)
        self._started = (0, 0)

    def seconds(self, now: Usage) -> float:
        """How much it is by now.

        Args:
            now: What the processes use.
        """
        new = [_numbers(pid) for pid, start in now.own if (pid, start) not in self._own]
        self._started = max([self._started, *(found for found in new if found[0] > self._depth)])
        self._own |= now.own
        seen = (sum(self._own.values()) - sum(self._before.own.values())) / _TICK
        return max(now.cpu - self._before.cpu, seen, self._started[1] * _BIRTH)


def _numbers(process: int) -> tuple[int, int]:
    """How many pid name spaces a process is in, and its number in the innermost: what was started there, counted."""
    with suppress(FileNotFoundError, ProcessLookupError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_bytes().splitlines()
        numbers = next(line for line in lines if line.startswith(b"NSpid:")).split()[1:]
        return len(numbers), int(numbers[-1])
    return 0, 0


@dataclass
class Watched:
    """A box under watch.

    `roots` names the processes outside whose descendants are the box's; `kill` ends it. It is looked at every `pause()`
    seconds. `files`: how many files a scratch folder holds, where the kernel has no limit on them. `reason` names the
    broken limit and is set once, before the kill. `spent`: its processor time. `clock`: seconds in which it neither
    used a processor nor waited for one.
    """

    roots: Callable[[], Sequence[int]]
    limits: Limits
    kill: Callable[[], None]
    pause: Callable[[], float] = lambda: 0.0
    files: Callable[[], int] = lambda: 0
    reason: Reason = ""
    spent: Spent = field(default_factory=lambda: Spent(Usage()))
    started: float = field(init=False, default_factory=time.monotonic)
    clock: float = field(init=False, default=0.0)
    seen: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.seen = self.started

    def check(self) -> None:
        """Read from /proc what the box uses, where that is due, and kill it if it is beyond a limit."""
        now = time.monotonic()
        if now - self.seen < self.pause():
            return
        total = usage(self.roots())
        if not total.running:
            self.clock += now - self.seen
        self.seen = now
        cpu, lived = self.spent.seconds(total), now - self.started
        if min(lived, self.clock + cpu) > self.limits.wall or lived > _PATIENCE * self.limits.wall:
            self.stop("wall")
        elif total.memory > self.limits.memory:
            self.stop("memory")
        elif cpu > self.limits.cpu:
            self.stop("cpu")
        elif total.processes > self.limits.processes + 4:  # the box's init and the programs that enter it count here
            self.stop("processes")
        elif self.files() > self.limits.files:
            self.stop("files")

    def stop(self, reason: Reason) -> None:
        """Kill the box.

        Args:
            reason: The limit for which it is killed; the first one stays.
        """
        self.reason = self.reason or reason
        self.kill()


class Watcher:
    """Holds the boxes under watch and the thread that looks at them; the thread sleeps while there are none."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, watched: Watched) -> None:
        """Watch a box from now on.

        Args:
            watched: The box.
        """
        with self._change:
            self._watched.append(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="sandbox-watcher", daemon=True)
                self._thread.start()
            self._change.notify()

    def remove(self, watched: Watched) -> None:
        """Watch a box no more. To be called before its process is reaped, whose number may then go to another.

        Args:
            watched: The box.
        """
        with self._change:
            self._watched = [other for other in self._watched if other is not watched]

    def rearm(self, watched: Watched, limits: Limits) -> None:
        """Put a box that goes on under new limits.

        Args:
            watched: The box.
            limits: The new limits; time and processor time count from now.
        """
        spent = Spent(usage(watched.roots()))
        with self._change:
            watched.limits, watched.spent, watched.clock = limits, spent, 0.0
            watched.started = watched.seen = time.monotonic()

    def _loop(self) -> None:
        while True:
            with self._change:
                while not self._watched:
                    self._change.wait()
                for watched in self._watched:
                    watched.check()
            time.sleep(_INTERVAL)


WATCHER = Watcher()
