"""What the commands print: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 250  # without a terminal nothing is cut


class _Console(Console):
    """A console whose reader may end: `| head` is no failure."""

    def on_broken_pipe(self) -> None:
        """Leave what becomes of it to the command's own end."""
        raise BrokenPipeError


console = _Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text with every character made visible that a terminal would obey: escapes, control and direction characters.

    Model output and stored names are printed only through this. Line feeds and tabs stay.

    Args:
        text: From anywhere.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def print_json(value: Any) -> None:
    """Indented JSON, ASCII only: nothing in it can drive a terminal.

    Args:
        value: What json.dumps takes.
    """
    print(json.dumps(value, indent=2))


def say(sentence: str) -> None:
    """Print a sentence as it is: no markup, control characters made visible.

    Args:
        sentence: Without markup.
    """
    console.print(Text(plain(sentence)))


def warn(sentence: str) -> None:
    """Print a warning on standard error.

    Args:
        sentence: Without a full stop.
    """
    errors.print(Text(f"warning: {plain(sentence)}"))


def answer(as_json: bool, facts: Any, *sentences: str) -> None:
    """Print what a command found or did.

    Args:
        as_json: Whether a program reads it.
        facts: JSON values, for programs.
        sentences: The same for people, a line each.
    """
    if as_json:
        print_json(facts)
    else:
        for sentence in sentences:
            say(sentence)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print a table.

    Args:
        title: Above it; may be empty.
        columns: Their heads.
        rows: A text a column.
        right: Columns that are aligned to the right.
    """
    numbers = set(right)
    drawn = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        drawn.add_column(Text(plain(column)), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    console.print(drawn)


def percent(score: float) -> str:
    """A fraction as per cent with one decimal.

    Args:
        score: In [0, 1].
    """
    return f"{100 * score:.1f}"


def size(count: float) -> str:
    """Bytes in decimal units.

    Args:
        count: Bytes.
    """
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min 20 s, 2 h 05 min or 3 d 4 h.

    Args:
        seconds: At least 0.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
