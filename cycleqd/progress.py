"""The progress of long work: lines in a stage's log, or a bar that the caller provides."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

SECONDS = 10.0
"""Between two lines of one work in the log."""

Bar = Callable[[str, float | None], AbstractContextManager[Callable[[int], None]]]
"""Shows what is done of a total (None: of an unknown one); its function is called with how much more is done."""


@contextmanager
def no_bar(what: str, total: float | None) -> Iterator[Callable[[int], None]]:
    """Shows nothing.

    Args:
        what: Ignored.
        total: Ignored.
    """
    yield lambda more: None


def counting(where: str, what: str, total: int) -> Callable[[int], None]:
    """A function to be called with how much more is done; it writes a line every ten seconds at most.

    The line is "WHERE: 120 of 378 WHAT". Work that ends sooner writes nothing. Calls must not overlap, in any thread.

    Args:
        where: What is worked on, such as a model's id.
        what: Unit and work: "bytes merged".
        total: How much there is to do.
    """
    done, last = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        if (now := time.monotonic()) - last >= SECONDS:
            last = now
            print(f"{where}: {done:,} of {total:,} {what}", file=sys.stderr, flush=True)

    return advance
