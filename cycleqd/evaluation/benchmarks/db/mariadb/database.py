"""One sample's database and its limited account on the private server: where the model's SQL runs.

Every statement gets a session of its own, as in AgentBench, so nothing a statement sets (sql_mode, variables, temporary
tables, locks) outlives it; and since the account may use only its own database, it finds nothing else. `guard.py`
watches what a statement takes.

A statement that ends the server, or cannot be stopped, costs only its own sample: the server begins anew, and every
database that is open makes itself and repeats its statements there when it is next used.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cycleqd.evaluation.benchmarks.db.mariadb.answers import Answer, fetch, number, text
from cycleqd.evaluation.benchmarks.db.mariadb.guard import Guard, StatementLimits, WatchedStatement
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.sandbox import Turnstile

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

T = TypeVar("T")
ANSWER_SECONDS = 3.0  # how long after its time limit a statement may take to notice that it was killed
STATEMENT_BYTES = 128 << 10  # of the INSERTs that fill a table; the server takes twice that
PRIVILEGES = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, CREATE TEMPORARY TABLES"
LOCK_SECONDS = 1
TIMED_OUT = 1969  # ER_STATEMENT_TIMEOUT
ACCESS_DENIED = 1045
LOST = {0, 2002, 2003, 2006, 2013, 2055}  # no connection, or one that ended; 0: while it was closed
# name too long, column twice, bad table name, no columns, bad column name
TABLE_FAULTS = {1059, 1060, 1103, 1113, 1166}
RESERVED = {"mysql", "information_schema", "performance_schema", "sys", "test"}


class Databases:
    """Makes databases on a running server, and guards what runs in them. A context manager; safe from many threads."""

    def __init__(self, server: MariaDB, limits: StatementLimits) -> None:
        self.server = server
        self.limits = limits
        self.turns = Turnstile()
        self.guard = Guard(server, limits)

    def __enter__(self) -> Self:
        self.guard.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.guard.stop()

    def steadily(self, action: Callable[[], T]) -> T:
        """Do something trusted, once more where the server has ended meanwhile by a statement of another.

        Args:
            action: What uses the server.
        """
        import pymysql

        with self.turns.shared():
            generation = self.server.generation
            try:
                return action()
            except pymysql.MySQLError:
                if self.server.answers():
                    raise
        with self.turns.alone():
            self.renew(generation)
            return action()

    def renew(self, generation: int) -> None:
        """Begin the server anew, unless that has been done. To be called alone.

        Args:
            generation: The one that is of no use any more.
        """
        if self.server.generation == generation:
            self.server.restart()

    def open(self, name: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Database:
        """Create a database with one table of TEXT columns, and an account that may use nothing else.

        A faulty table is what it is in AgentBench, whose statements fail unnoticed: absent where a column's name is
        refused (given twice), empty where a row does not have one value a column.

        Args:
            name: The database's name.
            table: The table's name.
            columns: The columns' names.
            rows: Their values, a text, number or None (NULL) a column.
        """
        database = Database(self, name, Table(table, columns, rows))
        self.steadily(database.make)
        return database


@dataclass(frozen=True)
class Table:
    """A table of TEXT columns."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Database:
    """One sample's database. `execute` runs untrusted statements; `drop` removes everything.

    `generation` is that of the server on which it was made, `past` what was executed since.
    """

    owner: Databases
    name: str
    table: Table
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    generation: int = 0
    past: list[str] = field(default_factory=list)

    @property
    def account(self) -> str:
        """Name of the account that may use this database alone."""
        return "u" + hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the server keeps this database's files."""
        return self.owner.server.folder / "db" / filename(self.name)

    def make(self) -> None:
        """Create it on the server, as the sample begins."""
        import pymysql

        where = f"{quoted(self.name)}.{quoted(self.table.name)}"
        fields = ", ".join(f"{quoted(column)} TEXT" for column in self.table.columns)
        # The guard's limit comes first: it does not count the waiting for a processor.
        resources = f"WITH MAX_USER_CONNECTIONS 4 MAX_STATEMENT_TIME {self.owner.limits.longest:g}"
        pattern = self.name.replace("_", r"\_").replace("%", r"\%")  # in a grant both are wildcards
        with self.owner.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {quoted(self.name)}")
            try:
                cursor.execute(f"CREATE TABLE {where} ({fields})")
                _fill(cursor, where, len(self.table.columns), self.table.rows)
            except pymysql.MySQLError as error:
                if number(error) not in TABLE_FAULTS:
                    raise
            cursor.execute(f"CREATE USER {self.account}@localhost IDENTIFIED BY '{self.password}' {resources}")
            cursor.execute(f"GRANT {PRIVILEGES} ON {quoted(pattern)}.* TO {self.account}@localhost")
        self.generation = self.owner.server.generation

    def execute(self, sql: str) -> Answer:
        """Run one statement in a session of its own; what it does wrong is part of the answer.

        A statement that takes too long is run once more while no other runs, so that a busy machine does not decide;
        and so is one under which the server ended, which another may have done.

        Args:
            sql: Any text; only its first result is read.

        Raises:
            UnavailableError: The server does not start again.
        """
        with self.owner.turns.shared():
            generation = self.owner.server.generation
            answer = self._repeated(sql)
        lingers = answer.exceeded == "time" and self._lingers()
        if answer.exceeded == "time" or answer.lost:
            with self.owner.turns.alone():
                if answer.lost or lingers:
                    self.owner.renew(generation)
                if not lingers:
                    generation = self.owner.server.generation
                    answer = self._repeated(sql)
                if answer.lost:
                    self.owner.renew(generation)
                    answer = Answer(error="the statement ended the database server", exceeded="server")
        if not answer.exceeded:
            self.past.append(sql)
        return answer

    def _repeated(self, sql: str) -> Answer:
        """The answer to a statement, after those before it where the server is a new one."""
        if self.generation != self.owner.server.generation:
            self.make()
            for earlier in self.past:
                if (answer := self._execute(earlier)).lost:
                    return answer
        return self._execute(sql)

    def _execute(self, sql: str) -> Answer:
        import pymysql

        faults = (pymysql.MySQLError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error)
        try:
            connection: Any = self._connect()
        except pymysql.MySQLError as error:
            return Answer(error=text(error), lost=not self.owner.server.answers())
        watched = WatchedStatement(int(connection.thread_id()), time.monotonic(), self.folder)
        answer = Answer()
        with self.owner.guard.watching(watched):
            try:
                answer = Answer(rows=fetch(connection, sql))
            except faults as error:
                late = number(error) == TIMED_OUT
                answer = Answer(error=text(error), exceeded="time" if late else "", number=number(error))
            finally:
                if connection.open:
                    connection.close()
        if limit := watched.exceeded or answer.exceeded:  # also where a killed BENCHMARK answers as if it had ended
            return Answer(error=f"the statement exceeded its limit of {self.owner.limits.named(limit)}", exceeded=limit)
        return replace(answer, lost=answer.number in LOST and not self.owner.server.answers())

    def drop(self) -> None:
        """Stop what still runs and remove database and account, the server with them where that cannot be done."""
        generation = self.owner.server.generation
        if generation == self.generation and not self.owner.steadily(self._removed):
            with self.owner.turns.alone():
                self.owner.renew(generation)

    def _removed(self) -> bool:
        """Whether it could be removed, or has gone with its server; a statement that cannot be stopped keeps it."""
        import pymysql

        if self.generation != self.owner.server.generation:
            return True
        with self.owner.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(f"SET SESSION lock_wait_timeout = {LOCK_SECONDS}, innodb_lock_wait_timeout = {LOCK_SECONDS}")
            cursor.execute(f"KILL HARD USER {self.account}@localhost")
            cursor.execute(f"DROP USER IF EXISTS {self.account}@localhost")
            deadline = time.monotonic() + ANSWER_SECONDS
            while True:
                try:
                    cursor.execute(f"DROP DATABASE IF EXISTS {quoted(self.name)}")
                    return True
                except pymysql.OperationalError:  # locked: by a statement still dying, or by a prepared transaction
                    if time.monotonic() > deadline:
                        return False
                    _release_prepared(cursor)

    def _lingers(self) -> bool:
        """Whether a killed session computes on: MariaDB cannot interrupt a single call of some functions."""
        return self.owner.steadily(self._computes)

    def _computes(self) -> bool:
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

        timeout = self.owner.limits.longest + ANSWER_SECONDS
        login = (self.account, self.password, timeout)
        try:
            connection = self.owner.server.connect(*login)
        except pymysql.OperationalError as error:
            if number(error) != ACCESS_DENIED:
                raise
            with self.owner.server.admin() as admin, admin.cursor() as cursor:
                cursor.execute(f"ALTER USER {self.account}@localhost IDENTIFIED BY '{self.password}'")
            connection = self.owner.server.connect(*login)
        with suppress(pymysql.MySQLError):  # a statement may have dropped the database: the next has none selected
            connection.select_db(self.name)
        return connection


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
