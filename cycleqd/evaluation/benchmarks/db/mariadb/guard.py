"""What a statement may take, and the thread that kills what takes more.

A statement's time is that by the clock without what its thread waited for a processor, so that a busy machine does not
decide.

A session can lift the server's own limits for itself, within one compound statement; it cannot reach these.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB

if TYPE_CHECKING:
    from pymysql.connections import Connection

LOOK_SECONDS = 0.1
Exceeded = Literal["", "time", "memory", "disk", "server"]
_PATIENCE = 20  # times its limit that a statement may wait for a processor


@dataclass(frozen=True)
class StatementLimits:
    """Of one statement: `seconds` that it runs or sleeps; bytes of its session's `memory` and its database's `disk`."""

    seconds: float = 5.0
    memory: int = 256 << 20
    disk: int = 128 << 20

    @property
    def longest(self) -> float:
        """Seconds by the clock after which it ends however long it waited for a processor."""
        return _PATIENCE * self.seconds

    def named(self, which: Exceeded) -> str:
        """One of the limits in words, for a verdict's reason.

        Args:
            which: The limit, not empty.
        """
        return f"{self.seconds:g} s" if which == "time" else f"{getattr(self, which) >> 20} MiB of {which}"


@dataclass
class WatchedStatement:
    """A session at work: its id on the server, when it began (monotonic), its database's folder, the limit it broke.

    `waited`: seconds for which its thread had waited for a processor before; None until the guard has looked.
    """

    thread: int
    started: float
    folder: Path
    exceeded: Exceeded = ""
    waited: float | None = None


class Guard(threading.Thread):
    """Kills the sessions that exceed a limit, by the administrator's connection."""

    def __init__(self, server: MariaDB, limits: StatementLimits) -> None:
        super().__init__(name="mariadb-guard", daemon=True)
        self._server = server
        self._limits = limits
        self._watched: dict[int, WatchedStatement] = {}
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._over = threading.Event()

    @contextmanager
    def watching(self, watched: WatchedStatement) -> Iterator[None]:
        """Hold a session to the limits for as long as the block runs.

        Args:
            watched: The session; its `exceeded` names the limit that it broke.
        """
        with self._lock:
            self._watched[watched.thread] = watched
            self._busy.set()
        try:
            yield
        finally:
            with self._lock:
                del self._watched[watched.thread]
                if not self._watched and not self._over.is_set():
                    self._busy.clear()

    def stop(self) -> None:
        """End the thread; it is not used again."""
        with self._lock:
            self._over.set()
            self._busy.set()
        self.join()

    def run(self) -> None:
        """Look at the statements older than one interval, while there are any; the usual ones are never looked at."""
        import pymysql

        while self._busy.wait() and not self._over.wait(LOOK_SECONDS):
            with self._lock:
                old = [one for one in self._watched.values() if time.monotonic() - one.started > LOOK_SECONDS]
            if old:
                with suppress(pymysql.MySQLError), self._server.admin() as admin:
                    self._check(admin, old)

    def _check(self, admin: Connection, old: list[WatchedStatement]) -> None:
        with admin.cursor() as cursor:
            cursor.execute("SELECT ID, MEMORY_USED, TID FROM information_schema.PROCESSLIST")
            sessions = {number: (memory, task) for number, memory, task in cursor.fetchall()}
            for one in old:
                memory, task = sessions.get(one.thread, (0, None))
                one.exceeded = one.exceeded or self._exceeded(one, memory, self._server.waited(task))
                if one.exceeded and one.thread in sessions:
                    cursor.execute(f"KILL HARD CONNECTION {one.thread}")

    def _exceeded(self, one: WatchedStatement, memory: int, waited: float) -> Exceeded:
        one.waited = waited if one.waited is None else one.waited
        passed = time.monotonic() - one.started
        if passed - (waited - one.waited) > self._limits.seconds or passed > self._limits.longest:
            return "time"
        if memory > self._limits.memory:
            return "memory"
        return "disk" if _bytes(one.folder) > self._limits.disk else ""


def _bytes(folder: Path) -> int:
    """Disk space of a database's files; files and folder may go meanwhile."""
    total = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                total += file.stat().st_blocks * 512
    return total
