"""Checkpoints in local folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError, UnavailableError
from cycleqd.outside import inside
from cycleqd.weights.buffers import buffer
from cycleqd.weights.layout import leftovers
from cycleqd.weights.protocols import Buffer, Sink, Source, Writer


class LocalSource(Source):
    """A checkpoint folder on this machine. Reads are positional, so any number of threads may share it."""

    def __init__(self, folder: Path | str, digests: Mapping[str, str] | None = None, name: str | None = None) -> None:
        """`digests`: recorded sha256 of files, where known; what is read is then verified against them. `name`: the
        folder's in messages, where its path says little.
        """
        self._folder = Path(folder)
        self._name = name or _hub_name(self._folder) or str(folder)
        if not self._folder.is_dir():
            raise InvalidInputError(f"There is no checkpoint folder {self._folder}; check the path.")
        self._digests = dict(digests or {})
        self._open_files: dict[str, int] = {}
        self._lock = Lock()

    @property
    def location(self) -> str:
        """The folder's path; the model's name for a folder of the Hugging Face Hub's cache."""
        return self._name

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def files(self) -> Mapping[str, int]:
        """Names and sizes of the plain files directly in the folder."""
        return {p.name: p.stat().st_size for p in sorted(self._folder.iterdir()) if p.is_file()}

    def digests(self) -> Mapping[str, str]:
        """The digests given at construction."""
        return self._digests

    def read_range(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of a file; a file that is shorter raises IntegrityError."""
        view = buffer(stop - start)
        done = 0
        while done < len(view):
            got = os.preadv(self._descriptor(name), [view[done:]], start + done)
            if got == 0:
                raise IntegrityError(
                    f"{self._folder / name} ends at byte {start + done}, before {stop}: it is truncated."
                )
            done += got
        return view

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._open_files:
                self._open_files[name] = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            return self._open_files[name]

    def __del__(self) -> None:
        for descriptor in self._open_files.values() if hasattr(self, "_open_files") else ():
            os.close(descriptor)


def _hub_name(folder: Path) -> str | None:
    """hf://ORG/NAME for …/models--ORG--NAME/snapshots/COMMIT."""
    if folder.parent.name != "snapshots" or not folder.parents[1].name.startswith("models--"):
        return None
    return "hf://" + folder.parents[1].name.removeprefix("models--").replace("--", "/")


class LocalSink(Sink):
    """A checkpoint folder being written. Files appear under their names only when complete (rename)."""

    def __init__(self, folder: Path | str) -> None:
        """The folder is made when missing."""
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self._folder)

    def create(self, name: str, size: int) -> LocalWriter:
        """Reserve `size` bytes on the disk now, so that a full disk is found before anything is computed."""
        return LocalWriter(inside(self._folder, name), size)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what an earlier run left: shards and an index of other names, and unfinished files."""
        present = {path.name for path in self._folder.iterdir()}
        unfinished = {name: name[1:].removesuffix(".part") for name in present if name.endswith(".part")}
        stale = leftovers(unfinished.values(), ())
        for name in [*leftovers(present, names), *(part for part, name in unfinished.items() if name in stale)]:
            (self._folder / name).unlink(missing_ok=True)


class LocalWriter(Writer):
    """Writes `.NAME.part` and renames it on close.

    Not synced to the disk: a killed process leaves at most a `.part` file, which the next run overwrites; after a power
    cut the recorded digests decide.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._hashed: Future[None] = self._hasher.submit(self._hash.update, b"")
        self._closed = False
        self._descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ConflictError(f"Another process is writing {path}; wait for it or choose another folder.") from error
        os.ftruncate(self._descriptor, 0)
        try:
            self._reserve(size)
        except OSError as error:
            self.abort()
            raise _explained(error, path, size) from error

    def _reserve(self, size: int) -> None:
        disk = os.fstatvfs(self._descriptor)
        if size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size:
            os.posix_fallocate(self._descriptor, 0, size)

    def write(self, data: Buffer) -> None:
        """Append and hash."""
        view = memoryview(data).cast("B")
        self._hashed.result()  # one piece at most waits
        self._hashed = self._hasher.submit(self._hash.update, view)  # hashing takes longer than writing
        while len(view):
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                raise _explained(error, self._path, len(view)) from error

    def close(self) -> str:
        """Rename into place; the sha256 of what was written."""
        self._hashed.result()
        self._hasher.shutdown()
        self._part.rename(self._path)
        os.close(self._descriptor)
        self._closed = True
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Remove the file, also when it was complete already."""
        if self._closed:
            self._path.unlink(missing_ok=True)
        elif self._descriptor >= 0:
            self._part.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._hasher.shutdown()
            self._descriptor = -1


def _explained(error: OSError, path: Path, size: int) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
        return UnavailableError(
            f"No disk left for {path}: {size:,} bytes are needed and {free:,} are free; "
            "free some space or choose another folder."
        )
    return UnavailableError(f"{path} cannot be written ({error.strerror}); check the disk and its permissions.")
