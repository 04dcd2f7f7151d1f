"""Reading with recorded digests checked on the way: bytes are hashed as they pass, in file order."""

from __future__ import annotations

import hashlib
from threading import Lock

from cycleqd.errors import IntegrityError
from cycleqd.weights.protocols import Buffer, Source

_PIECE = 8 << 20
_PENDING_LIMIT = 128 << 20  # bytes that may wait for an earlier range before the gap is read on its own


class VerifiedReader:
    """Reads one source. After the last read, `finish` compares every file that was touched with its recorded sha256."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sizes = source.files()
        self._digests = source.digests()
        self._files: dict[str, _FileHash] = {}
        self._lock = Lock()

    def read(self, name: str, start: int, stop: int) -> Buffer:
        """Bytes [start, stop) of a file, from any thread.

        Args:
            name: Name of the file.
            start: First byte.
            stop: Byte after the last one.
        """
        data = self._source.read_range(name, start, stop)
        if name in self._digests:
            with self._lock:
                file = self._files.setdefault(name, _FileHash(self._source, name))
            file.feed(start, data)
        return data

    def finish(self) -> None:
        """Hash what was not read and compare; raises IntegrityError naming the first file that differs."""
        for name, file in self._files.items():
            found = file.finish(self._sizes[name])
            if found != self._digests[name]:
                raise IntegrityError(
                    f"{self._source.location}/{name} has sha256 {found[:16]}…, "
                    f"but {self._digests[name][:16]}… was recorded: it was changed or damaged; restore it."
                )


class _FileHash:
    """The sha256 of one file whose ranges arrive roughly in order, from several threads."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name
        self._hash = hashlib.sha256()
        self._position = 0
        self._pending: dict[int, Buffer] = {}
        self._lock = Lock()
        self._draining = False

    def feed(self, start: int, data: Buffer) -> None:
        """Hash what is next in line; whichever thread finds the line free does it for all."""
        with self._lock:
            if start >= self._position:
                self._pending[start] = data
            if self._draining:
                return
            self._draining = True
        while (piece := self._next()) is not None:
            self._hash.update(piece)

    def _next(self) -> Buffer | None:
        with self._lock:
            data = self._pending.pop(self._position, None)
            gap = min(self._pending, default=0) - self._position
            waiting = sum(len(piece) for piece in self._pending.values())
            if data is None and (self._position == 0 or waiting > _PENDING_LIMIT) and gap > 0:
                data = self._source.read_range(self._name, self._position, self._position + min(gap, _PIECE))
            if data is None:
                self._draining = False
                return None
            self._position += len(data)
            for start in [start for start in self._pending if start < self._position]:
                del self._pending[start]
            return data

    def finish(self, size: int) -> str:
        """Hash the rest of the file, reading what is missing."""
        while self._position < size:
            data = self._pending.pop(self._position, None)
            if data is None:
                stop = min(min(self._pending, default=size), self._position + _PIECE)
                data = self._source.read_range(self._name, self._position, stop)
            self._hash.update(data)
            self._position += len(data)
            self._pending = {start: piece for start, piece in self._pending.items() if start >= self._position}
        return self._hash.hexdigest()
