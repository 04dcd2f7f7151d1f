"""One sample's database and its limited account on the private server: where the model's SQL runs.

Every statement gets a session of its own, as in AgentBench, so nothing a statement sets (sql_mode, variables, temporary
tables, locks) outlives it; and since the account may use only its own database, it finds nothing else. Session limits can
be lifted by the session itself, so a guard outside measures time, memory and disk, and kills what exceeds them.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.evaluate.mariadb import MariaDB
from cycleqd.errors import UnavailableError

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

GUARD_SECONDS = 0.1
ANSWER_SECONDS = 30.0  # how long after its time limit a statement may take to notice that it was killed
MAX_ROWS = 10_000
PRIVILEGES = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, CREATE TEMPORARY TABLES"
TIMED_OUT = 1969  # ER_STATEMENT_TIMEOUT
ACCESS_DENIED = 1045
TABLE_FAULTS = {
    1059,
    1060,
    1103,
    1113,
    1166,
}  # name too long, column twice, bad table name, no columns, bad column name
RESERVED = {"mysql", "information_schema", "performance_schema", "sys", "test"}


@dataclass(frozen=True)
class Limits:
    """What one statement may take: wall `seconds`, and of the server's `memory` and `disk` in bytes."""

    seconds: float = 10.0
    memory: int = 256 << 20
    disk: int = 128 << 20


@dataclass(frozen=True)
class Answer:
    """What a statement gave: `rows` (the first MAX_ROWS), or `error` as "number (state): message".

    `exceeded` names the limit that stopped it.
    """

    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    exceeded: Literal["", "time", "memory", "disk"] = ""

    @property
    def text(self) -> str:
        """The answer as AgentBench shows it: the list of row tuples, or the error's text."""
        return self.error or str(list(self.rows))


class Databases:
    """Makes databases on a running server, and guards what runs in them. A context manager; safe from many threads."""

    def __init__(self, server: MariaDB, limits: Limits) -> None:
        self.server = server
        self.limits = limits
        self._guard = _Guard(server, limits)

    def __enter__(self) -> Databases:
        self._guard.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.stop()

    def open(self, name: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Database:
        """Create database `name` with one table of TEXT columns, holding `rows`, and an account that may use nothing else.

        A faulty table is what it is in AgentBench, whose statements fail unnoticed: absent where a column's name is
        refused (given twice), empty where a row does not have one value a column.
        """
        import pymysql

        account = "u" + hashlib.sha256(name.encode()).hexdigest()[:16]
        database = Database(self, name, account, secrets.token_hex(16))
        fields = ", ".join(f"{quoted(column)} TEXT" for column in columns)
        pattern = name.replace("_", r"\_").replace("%", r"\%")  # in a grant both are wildcards
        with self.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {quoted(name)}")
            try:
                cursor.execute(f"CREATE TABLE {quoted(name)}.{quoted(table)} ({fields})")
                _fill(cursor, f"{quoted(name)}.{quoted(table)}", len(columns), rows)
            except pymysql.MySQLError as error:
                if _number(error) not in TABLE_FAULTS:
                    raise
            cursor.execute(
                f"CREATE USER {account}@localhost IDENTIFIED BY '{database.password}' WITH MAX_USER_CONNECTIONS 4"
            )
            cursor.execute(f"GRANT {PRIVILEGES} ON {quoted(pattern)}.* TO {account}@localhost")
        return database

    @contextmanager
    def guarded(self, connection: Connection, database: Database) -> Iterator[_Watched]:
        """Hold what `connection` runs to the limits."""
        watched = _Watched(connection.thread_id(), time.monotonic(), database.folder)
        self._guard.add(watched)
        try:
            yield watched
        finally:
            self._guard.remove(watched)


@dataclass
class Database:
    """One sample's database. `execute` runs untrusted statements; `drop` removes everything."""

    owner: Databases
    name: str
    account: str
    password: str

    @property
    def folder(self) -> Path:
        """Where the server keeps this database's files."""
        return self.owner.server.folder / "db" / filename(self.name)

    def execute(self, sql: str) -> Answer:
        """Run one statement in a session of its own. Never raises for what the statement does; raises UnavailableError
        when the server itself is gone.
        """
        import pymysql

        limits = self.owner.limits
        try:
            connection = self._connect()
        except pymysql.MySQLError as error:
            self._require_server()
            return Answer(error=_text(error))
        with self.owner.guarded(connection, self) as watched:
            try:
                return Answer(rows=self._fetch(connection, sql))
            except (pymysql.MySQLError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error) as error:
                if watched.exceeded or _number(error) == TIMED_OUT:
                    limit = watched.exceeded or "time"
                    amount = {
                        "time": f"{limits.seconds:g} s",
                        "memory": f"{limits.memory} bytes",
                        "disk": f"{limits.disk} bytes",
                    }
                    return Answer(error=f"the statement exceeded its {limit} limit of {amount[limit]}", exceeded=limit)
                self._require_server()
                return Answer(error=_text(error))
            finally:
                connection._force_close()

    def drop(self) -> None:
        """Stop what still runs and remove database and account."""
        import pymysql

        with self.owner.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION lock_wait_timeout = 10")
            for statement in (
                f"KILL HARD USER {self.account}@localhost",
                f"DROP USER {self.account}@localhost",
                f"DROP DATABASE IF EXISTS {quoted(self.name)}",
            ):
                # Whatever a statement left behind only matters to the next database of that name, whose creation then fails.
                with suppress(pymysql.MySQLError):
                    cursor.execute(statement)

    def _connect(self) -> Connection:
        """A session of the account; one that changed its own password gets the old one back."""
        import pymysql

        timeout = self.owner.limits.seconds + ANSWER_SECONDS
        login = (self.account, self.password, None, timeout)
        try:
            connection = self.owner.server.connect(*login)
        except pymysql.OperationalError as error:
            if _number(error) != ACCESS_DENIED:
                raise
            with self.owner.server.admin() as admin, admin.cursor() as cursor:
                cursor.execute(f"ALTER USER {self.account}@localhost IDENTIFIED BY '{self.password}'")
            connection = self.owner.server.connect(*login)
        with suppress(pymysql.MySQLError):  # a statement may have dropped the database: the next has none selected
            connection.select_db(self.name)
        return connection

    def _fetch(self, connection: Connection, sql: str) -> tuple[tuple[Any, ...], ...]:
        from pymysql.cursors import SSCursor

        cursor = connection.cursor(SSCursor)
        cursor.execute(f"SET SESSION max_statement_time = {self.owner.limits.seconds:g}")
        cursor.execute(sql)
        return tuple(cursor.fetchmany(MAX_ROWS)) if cursor.description else ()

    def _require_server(self) -> None:
        if not self.owner.server.alive:
            raise UnavailableError(
                f"The private MariaDB server ended while sample database {self.name!r} was in use: see its memory and disk "
                "limits, then run the stage again."
            )


@dataclass
class _Watched:
    thread: int
    started: float
    folder: Path
    exceeded: Literal["", "time", "memory", "disk"] = ""


class _Guard(threading.Thread):
    """Kills the sessions that exceed a limit, by the administrator's connection."""

    def __init__(self, server: MariaDB, limits: Limits) -> None:
        super().__init__(name="mariadb-guard", daemon=True)
        self._server = server
        self._limits = limits
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._over = threading.Event()

    def add(self, watched: _Watched) -> None:
        with self._lock:
            self._watched[watched.thread] = watched
            self._busy.set()

    def remove(self, watched: _Watched) -> None:
        with self._lock:
            self._watched.pop(watched.thread, None)
            if not self._watched:
                self._busy.clear()

    def stop(self) -> None:
        self._over.set()
        self._busy.set()
        self.join()

    def run(self) -> None:
        """Look every GUARD_SECONDS at the statements older than that; the usual ones are never looked at."""
        import pymysql

        while self._busy.wait() and not self._over.wait(GUARD_SECONDS):
            now = time.monotonic()
            with self._lock:
                old = [one for one in self._watched.values() if now - one.started > GUARD_SECONDS]
            if old:
                with suppress(pymysql.MySQLError), self._server.admin() as admin:
                    self._check(admin, old, now)

    def _check(self, admin: Connection, old: list[_Watched], now: float) -> None:
        with admin.cursor() as cursor:
            cursor.execute("SELECT ID, MEMORY_USED FROM information_schema.PROCESSLIST")
            memory = dict(cursor.fetchall())
            for one in old:
                if now - one.started > self._limits.seconds:
                    one.exceeded = "time"
                elif memory.get(one.thread, 0) > self._limits.memory:
                    one.exceeded = "memory"
                elif _bytes(one.folder) > self._limits.disk:
                    one.exceeded = "disk"
                if one.exceeded:
                    cursor.execute(f"KILL HARD CONNECTION {one.thread}")


def quoted(identifier: str) -> str:
    """An identifier in backticks, as SQL wants it."""
    return "`" + identifier.replace("`", "``") + "`"


def filename(identifier: str) -> str:
    """The folder name MariaDB gives a database: every character but letters, digits and _ as @ and four hex digits."""
    safe = [char if char.isascii() and (char.isalnum() or char == "_") else f"@{ord(char):04x}" for char in identifier]
    return "".join(safe)


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):
            total += file.stat().st_blocks * 512
    return total


def _fill(cursor: Cursor, table: str, width: int, rows: Sequence[Sequence[Any]]) -> None:
    if not rows or any(len(row) != width for row in rows):
        return
    # PyMySQL writes 2.0 as 2.0e0, which the server would store as "2".
    values = [[str(cell) if isinstance(cell, float) else cell for cell in row] for row in rows]
    cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * width)})", values)


def _number(error: BaseException) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _text(error: BaseException) -> str:
    """An error as MySQL's own connector words it, which is how AgentBench's models see it: "1146 (42S02): Table ..."."""
    if len(error.args) == 2 and isinstance(error.args[0], int):
        return f"{error.args[0]} ({getattr(error, 'sqlstate', None) or 'HY000'}): {error.args[1]}"
    return f"{type(error).__name__}: the answer could not be read"
