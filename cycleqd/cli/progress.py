"""Progress bars on standard error: over bytes or items with the time left, or over parts with what is being done."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cycleqd.cli.output import errors


@contextlib.contextmanager
def counting(what: str, total: float | None) -> Iterator[Callable[[int], None]]:
    """Show a bar for work in bytes or items; yields the function that advances it.

    Args:
        what: What is being done.
        total: Bytes or items; without a total the bar only moves.
    """
    left = () if total is None else (TaskProgressColumn(), TimeRemainingColumn())
    with _shown(TextColumn("{task.description}"), BarColumn(), *left) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.advance(bar, done)


@contextlib.contextmanager
def parts(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar for work in parts; yields the function to call with each part's name as it begins.

    Args:
        what: What is being done.
        total: How many parts there are.
    """
    with _shown(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as progress:
        bar, begun = progress.add_task(what, total=total), itertools.count()
        yield lambda part: progress.update(bar, description=f"{what} {part}", completed=next(begun))


def _shown(*columns: ProgressColumn) -> Progress:
    """Gone when it ends; nowhere but on a terminal, not even as an empty line."""
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
