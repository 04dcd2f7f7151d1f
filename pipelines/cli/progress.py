"""A progress bar over bytes or items, with the time left, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipelines.cli.output import errors


@contextlib.contextmanager
def counting(what: str, total: float) -> Iterator[Callable[[int], None]]:
    """Show a bar for `what`; the function that is given advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.advance(bar, done)
