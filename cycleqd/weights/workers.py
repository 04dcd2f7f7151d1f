"""Threads that each compute with one thread: results in order, the same bytes on any number of cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def single_threaded(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Workers with one thread of arithmetic each, so that bytes do not depend on the machine's cores.

    When the block ends, also by a failure, what was not begun is given up and no worker is at work.

    Args:
        threads: Number of workers.
    """
    previous = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(previous)


def in_order(pool: ThreadPoolExecutor, make: Callable[[str], T], names: Iterable[str], ahead: int) -> Iterator[T]:
    """The results in the order of the names; memory stays bounded.

    Args:
        pool: Who works.
        make: What is done for a name.
        names: Of which the results are wanted.
        ahead: How many results may wait behind the one that is next.
    """
    pending: deque[Future[T]] = deque()
    for name in names:
        pending.append(pool.submit(make, name))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
