"""What a statement gave, as AgentBench shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cycleqd.evaluation.benchmarks.db.mariadb.guard import Exceeded

if TYPE_CHECKING:
    from pymysql.connections import Connection

MAX_ROWS = 10_000
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Answer:
    """What a statement gave: `rows` (the first ones), or `error` as "number (state): message".

    `exceeded` names the limit that stopped it. `lost`: the server has ended, by this statement or another.
    `number`: the error's.
    """

    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    exceeded: Exceeded = ""
    lost: bool = False
    number: int = 0

    @property
    def text(self) -> str:
        """The answer as AgentBench shows it: the list of row tuples, or the error's text."""
        return self.error or str(list(self.rows))


def fetch(connection: Connection, sql: str) -> tuple[tuple[Any, ...], ...]:
    """Run a statement and read its first result, up to MAX_ROWS rows or MAX_BYTES of text, whichever comes first.

    Args:
        connection: A session of its own.
        sql: Any text.
    """
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


def number(error: BaseException) -> int:
    """An error's number on the server; 0 for one that is none of the server's.

    Args:
        error: Any exception.
    """
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def text(error: BaseException) -> str:
    """An error as MySQL's own connector words it, which is what AgentBench shows: "1146 (42S02): Table ...".

    Args:
        error: Any exception.
    """
    if len(error.args) == 2 and isinstance(error.args[0], int):
        return f"{error.args[0]} ({getattr(error, 'sqlstate', None) or 'HY000'}): {error.args[1]}"
    return f"{type(error).__name__}: the answer could not be read"
