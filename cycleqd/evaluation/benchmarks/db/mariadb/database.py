"""One sample's database and its limited account on the private server: where the model's SQL runs.

Every statement gets a session of its own, as in AgentBench, so nothing a statement sets (sql_mode, variables, temporary
tables, locks) outlives it; and since the account may use only its own database, it finds nothing else. `guard.py`
watches what a statement takes.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.benchmarks.db.mariadb.guard import Exceeded, Guard, StatementLimits, WatchedStatement
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.sandbox import Turnstile

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

ANSWER_SECONDS = 3.0  # how long after its time limit a statement may take to notice that it was killed
STATEMENT_BYTES = 128 << 10  # of the INSERTs that fill a table; the server takes twice that
MAX_ROWS = 10_000
MAX_BYTES = 4 << 20
PRIVILEGES = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, CREATE TEMPORARY TABLES"
LOCK_SECONDS = 1
TIMED_OUT = 1969  # ER_STATEMENT_TIMEOUT
ACCESS_DENIED = 1045
# name too long, column twice, bad table name, no columns, bad column name
TABLE_FAULTS = {1059, 1060, 1103, 1113, 1166}
RESERVED = {"mysql", "information_schema", "performance_schema", "sys", "test"}


@dataclass(frozen=True)
class Answer:
    """What a statement gave: `rows` (the first ones), or `error` as "number (state): message".

    `exceeded` names the limit that stopped it.
    """

    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    exceeded: Exceeded = ""

    @property
    def text(self) -> str:
        """The answer as AgentBench shows it: the list of row tuples, or the error's text."""
        return self.error or str(list(self.rows))


class Databases:
    """Makes databases on a running server, and guards what runs in them. A context manager; safe from many threads."""

    def __init__(self, server: MariaDB, limits: StatementLimits) -> None:
        self.server = server
        self.limits = limits
        self.turns = Turnstile()
        self.guard = Guard(server, limits)
        self.abandoned: set[str] = set()

    def __enter__(self) -> Self:
        self.guard.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.guard.stop()

    def open(self, name: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Database:
        """Create a database with one table of TEXT columns, and an account that may use nothing else.

        A faulty table is what it is in AgentBench, whose statements fail unnoticed: absent where a column's name is
        refused (given twice), empty where a row does not have one value a column.

        Args:
            name: The database's name; made longer where a database of this name could not be removed.
            table: The table's name.
            columns: The columns' names.
            rows: Their values, a text, number or None (NULL) a column.
        """
        import pymysql

        while name in self.abandoned:
            name += "_"
        account = "u" + hashlib.sha256(name.encode()).hexdigest()[:16]
        database = Database(self, name, account, secrets.token_hex(16))
        fields = ", ".join(f"{quoted(column)} TEXT" for column in columns)
        resources = f"WITH MAX_USER_CONNECTIONS 4 MAX_STATEMENT_TIME {self.limits.seconds:g}"
        pattern = name.replace("_", r"\_").replace("%", r"\%")  # in a grant both are wildcards
        with self.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {quoted(name)}")
            try:
                cursor.execute(f"CREATE TABLE {quoted(name)}.{quoted(table)} ({fields})")
                _fill(cursor, f"{quoted(name)}.{quoted(table)}", len(columns), rows)
            except pymysql.MySQLError as error:
                if _number(error) not in TABLE_FAULTS:
                    raise
            cursor.execute(f"CREATE USER {account}@localhost IDENTIFIED BY '{database.password}' {resources}")
            cursor.execute(f"GRANT {PRIVILEGES} ON {quoted(pattern)}.* TO {account}@localhost")
        return database


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
        """Run one statement in a session of its own; what it does wrong is part of the answer.

        A statement that takes too long is run once more while no other runs, so that a busy machine does not decide.

        Args:
            sql: Any text; only its first result is read.

        Raises:
            UnavailableError: The server itself is gone.
        """
        with self.owner.turns.shared():
            answer = self._execute(sql)
        if answer.exceeded != "time" or self._lingers():
            return answer
        with self.owner.turns.alone():
            return self._execute(sql)

    def _execute(self, sql: str) -> Answer:
        import pymysql

        faults = (pymysql.MySQLError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error)
        try:
            connection: Any = self._connect()
        except pymysql.MySQLError as error:
            self._require_server()
            return Answer(error=_text(error))
        watched = WatchedStatement(int(connection.thread_id()), time.monotonic(), self.folder)
        answer = Answer()
        with self.owner.guard.watching(watched):
            try:
                answer = Answer(rows=_fetch(connection, sql))
            except faults as error:
                answer = Answer(error=_text(error), exceeded="time" if _number(error) == TIMED_OUT else "")
            finally:
                if connection.open:
                    connection.close()
        limit = watched.exceeded or answer.exceeded
        if not limit and time.monotonic() - watched.started > self.owner.limits.seconds:
            limit = "time"  # a killed BENCHMARK answers as if it had ended
        if limit:
            return Answer(error=f"the statement exceeded its limit of {self.owner.limits.named(limit)}", exceeded=limit)
        if answer.error:
            self._require_server()
        return answer

    def drop(self) -> None:
        """Stop what still runs and remove database and account.

        Where a statement that cannot be stopped still holds the database, it stays until the server ends, and its name
        is not used again.
        """
        import pymysql

        with self.owner.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(f"SET SESSION lock_wait_timeout = {LOCK_SECONDS}, innodb_lock_wait_timeout = {LOCK_SECONDS}")
            cursor.execute(f"KILL HARD USER {self.account}@localhost")
            cursor.execute(f"DROP USER {self.account}@localhost")
            deadline = time.monotonic() + ANSWER_SECONDS
            while True:
                try:
                    cursor.execute(f"DROP DATABASE IF EXISTS {quoted(self.name)}")
                    return
                except pymysql.OperationalError:  # locked: by a statement still dying, or by a prepared transaction
                    if time.monotonic() > deadline:
                        self.owner.abandoned.add(self.name)
                        return
                    _release_prepared(cursor)

    def _lingers(self) -> bool:
        """Whether a killed session computes on: MariaDB cannot interrupt a single call of some functions."""
        deadline = time.monotonic() + ANSWER_SECONDS
        with self.owner.server.admin() as connection, connection.cursor() as cursor:
            while cursor.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (self.account,)):
                if time.monotonic() > deadline:
                    return True
                time.sleep(0.05)
        return False

    def _connect(self) -> Connection:
        """A session of the account; one that changed its own password gets the old one back."""
        import pymysql

        timeout = self.owner.limits.seconds + ANSWER_SECONDS
        login = (self.account, self.password, timeout)
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

    def _require_server(self) -> None:
        if not self.owner.server.alive:
            raise UnavailableError(
                f"The private MariaDB server ended while the database {self.name!r} was in use: see that this machine "
                "has memory and disk to spare, then run the stage again."
            )


def quoted(identifier: str) -> str:
    """An identifier as SQL requires it, in backticks.

    Args:
        identifier: A name of a database, table or column, as it is.
    """
    return "`" + identifier.replace("`", "``") + "`"


def filename(identifier: str) -> str:
    """The name of the folder in which MariaDB keeps a database.

    Every character but letters, digits and _ is written as @ and four hex digits.

    Args:
        identifier: The database's name, of characters up to U+FFFF.
    """
    safe = [char if char.isascii() and (char.isalnum() or char == "_") else f"@{ord(char):04x}" for char in identifier]
    return "".join(safe)


def _fetch(connection: Connection, sql: str) -> tuple[tuple[Any, ...], ...]:
    """Run `sql` and read its first result, up to MAX_ROWS rows or MAX_BYTES of text, whichever comes first."""
    from pymysql.cursors import SSCursor

    cursor: Any = connection.cursor(SSCursor)
    rows: list[tuple[Any, ...]] = []
    try:
        cursor.execute(sql)
        size = 0
        while cursor.description and len(rows) < MAX_ROWS and size < MAX_BYTES:
            row = cursor.fetchone()
            if row is None:
                break
            rows.append(row)
            size += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
    finally:
        if cursor._result is not None:  # else PyMySQL reads all that is left before it lets go
            cursor._result.unbuffered_active = False
    return tuple(rows)


def _release_prepared(cursor: Cursor) -> None:
    """Roll back what XA PREPARE left: only a hostile statement prepares, and its locks outlive its session."""
    cursor.execute("XA RECOVER FORMAT='SQL'")
    for *_, name in cursor.fetchall():
        cursor.execute(f"XA ROLLBACK {name}")


def _fill(cursor: Any, table: str, width: int, rows: Sequence[Sequence[Any]]) -> None:
    if not rows or any(len(row) != width for row in rows):
        return
    # PyMySQL writes 2.0 as 2.0e0, which the server would store as "2".
    values = [[str(cell) if isinstance(cell, float) else cell for cell in row] for row in rows]
    cursor.max_stmt_length = STATEMENT_BYTES
    cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * width)})", values)


def _number(error: BaseException) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _text(error: BaseException) -> str:
    """An error as MySQL's own connector words it, which is what AgentBench shows: "1146 (42S02): Table ..."."""
    if len(error.args) == 2 and isinstance(error.args[0], int):
        return f"{error.args[0]} ({getattr(error, 'sqlstate', None) or 'HY000'}): {error.args[1]}"
    return f"{type(error).__name__}: the answer could not be read"
