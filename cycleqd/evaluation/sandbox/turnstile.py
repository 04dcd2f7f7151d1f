"""A readers-writer lock: many at once, or one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """`shared()` admits any number together; `alone()` waits until all are out and keeps others out meanwhile."""

    def __init__(self) -> None:
        self._inside = 0
        self._door = threading.Lock()  # held while one waits to be alone, so that no other comes in
        self._change = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run the block at the same time as others; waits while one runs alone or waits to."""
        with self._door, self._change:
            self._inside += 1
        try:
            yield
        finally:
            with self._change:
                self._inside -= 1
                self._change.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the block alone: wait until all others are out, and keep new ones out meanwhile."""
        with self._door:
            with self._change:
                while self._inside:
                    self._change.wait()
            yield
