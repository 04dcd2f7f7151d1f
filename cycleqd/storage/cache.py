"""A bounded cache of checkpoints in a folder that any number of processes share: of one machine, or, where the folder
is on a network file system that keeps locks (NFS, CephFS), of many.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cycleqd.errors import IntegrityError, InvalidInputError, UnavailableError
from cycleqd.weights.local import LocalSink
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.protocols import Source

_PIECE = 16 << 20


class CheckpointCache:
    """Checkpoints by digest: FOLDER/DIGEST is complete and verified, FOLDER/DIGEST.SIZE.part comes or goes.

    Locks are flock on FOLDER/DIGEST.lock, so that a killed process frees its own: shared while used, exclusive while
    fetched or evicted. FOLDER/.lock guards the accounting: entries and parts come and go only under it.
    """

    def __init__(self, folder: Path | str, limit_bytes: int) -> None:
        """Entries and fetches under way together never take more than `limit_bytes`, each process' own limit.

        Raises UnavailableError where nothing can be written.
        """
        self._folder = Path(folder)
        self._limit = limit_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._open_lock(".lock"):
                pass
        except OSError as error:
            raise UnavailableError(
                f"The cache {self._folder} cannot be written ({error.strerror}) by user {os.getuid()}: give it the"
                " folder, or choose another (CYCLEQD_CACHE; on a cluster the claim place.volumes.cache)."
            ) from error

    @contextmanager
    def fetch(self, source: Source, manifest: Manifest) -> Iterator[Path]:
        """The checkpoint's folder (read only), fetched when absent; it stays until the block ends.

        Args:
            source: Where to fetch the checkpoint from.
            manifest: The checkpoint's files, sizes and digests.

        Raises:
            IntegrityError: a file differs from the manifest.
            InvalidInputError: the checkpoint alone exceeds the limit.
            UnavailableError: entries in use leave no room, or the disk is full.
        """
        entry = self._folder / manifest.digest
        with self._held(
            entry, lambda: _is_whole(entry, manifest), manifest.size, lambda part: _copy(part, source, manifest)
        ):
            yield entry

    @contextmanager
    def made(self, digest: str, size: int, write: Callable[[Path], object]) -> Iterator[Path]:
        """The folder of a checkpoint that is written here when absent; it stays until the block ends.

        Args:
            digest: Identifies its content.
            size: The bytes that it takes.
            write: Writes it into an empty folder.

        Raises:
            InvalidInputError: the checkpoint alone exceeds the limit.
            UnavailableError: entries in use leave no room, or the disk is full.
        """
        entry = self._folder / digest
        with self._held(entry, entry.is_dir, size, write):
            yield entry

    @contextmanager
    def _held(
        self, entry: Path, is_whole: Callable[[], bool], size: int, write: Callable[[Path], object]
    ) -> Iterator[None]:
        """The entry, written when it is not whole, cannot be evicted before the block ends."""
        with self._open_lock(f"{entry.name}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            while not is_whole():  # again when another process evicts it between the two locks
                fcntl.flock(lock, fcntl.LOCK_UN)  # on NFS, two that kept a shared lock would wait for each other
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not is_whole():
                    self._fill(entry, size, write)
                fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(entry)
            yield

    @contextmanager
    def find(self, manifest: Manifest) -> Iterator[Path | None]:
        """The checkpoint's folder as by `fetch` when it is cached already, else None.

        Args:
            manifest: The checkpoint's files, sizes and digests.
        """
        entry = self._folder / manifest.digest
        if not _is_whole(entry, manifest):
            yield None
            return
        with self._open_lock(f"{manifest.digest}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            there = _is_whole(entry, manifest)  # it may have been evicted before it was locked
            if there:
                os.utime(entry)
            yield entry if there else None

    def _fill(self, entry: Path, size: int, write: Callable[[Path], object]) -> None:
        part = self._reserve(entry.name, size)
        try:
            write(part)
            with self._accounting():
                part.rename(entry)
        except BaseException:
            with self._accounting():
                shutil.rmtree(part, ignore_errors=True)
            raise

    def _reserve(self, digest: str, size: int) -> Path:
        """An empty folder that claims `size` bytes, made free by removing what was not used for longest."""
        if size > self._limit:
            raise InvalidInputError(
                f"A checkpoint of {size:,} bytes does not fit into the cache {self._folder} of {self._limit:,} bytes; "
                "raise its limit."
            )
        with self._accounting():
            folders = [path for path in self._folder.iterdir() if path.is_dir()]
            others = [path for path in folders if _digest_of(path) != digest]
            used = sum(map(_size_of, others))
            for path in sorted(others, key=lambda path: (path.suffix != ".part", path.stat().st_mtime)):
                if used + size > self._limit or path.suffix == ".part":
                    used -= self._remove_unused(path)
            if used + size > self._limit:
                raise UnavailableError(
                    f"The cache {self._folder} has {self._limit - used:,} bytes left beside the checkpoints in use, "
                    f"{size:,} are needed; raise its limit or run fewer stages at a time."
                )
            for damaged in set(folders) - set(others):
                shutil.rmtree(damaged)
            part = self._folder / f"{digest}.{size}.part"
            part.mkdir()
            return part

    def _remove_unused(self, path: Path) -> int:
        """Remove an entry, or what a killed fetch left, unless a process holds it; the bytes freed."""
        with self._open_lock(f"{_digest_of(path)}.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            size = _size_of(path)
            if path.suffix != ".part":  # killed while it removes, this process leaves no entry with files missing
                path = path.rename(path.with_name(f"{path.name}.{size}.part"))
            shutil.rmtree(path)
            return size

    @contextmanager
    def _accounting(self) -> Iterator[None]:
        """While no other process adds or removes an entry or a part."""
        with self._open_lock(".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _open_lock(self, name: str) -> Iterator[int]:
        """A lock file's descriptor; closing it frees the lock."""
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _copy(folder: Path, source: Source, manifest: Manifest) -> None:
    sink = LocalSink(folder)
    for name, file in sorted(manifest.files.items()):
        writer = sink.create(name, file.size)
        try:
            for start in range(0, file.size, _PIECE):
                writer.write(source.read_range(name, start, min(start + _PIECE, file.size)))
            found = writer.close()
        except BaseException:
            writer.abort()
            raise
        if found != file.sha256:
            raise IntegrityError(
                f"{source.location}/{name} has sha256 {found[:16]}…, but {file.sha256[:16]}… was recorded: "
                "it was changed or damaged; restore it."
            )


def _is_whole(entry: Path, manifest: Manifest) -> bool:
    """Whether every file is there with its size: an entry may have been damaged since it was verified."""
    try:
        return all((entry / name).stat().st_size == file.size for name, file in manifest.files.items())
    except FileNotFoundError:
        return False


def _digest_of(path: Path) -> str:
    return path.name.split(".")[0]


def _size_of(path: Path) -> int:
    """What an entry takes, or what a fetch under way has claimed."""
    return int(path.name.split(".")[1]) if path.suffix == ".part" else sum(f.stat().st_size for f in path.iterdir())
