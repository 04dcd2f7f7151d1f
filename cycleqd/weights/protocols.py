"""Where checkpoints come from and go to: the two small interfaces that the streaming code knows.

Local folders implement them in `cycleqd.weights.local`, S3 in `cycleqd.storage`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Source(Protocol):
    """A readable checkpoint folder (config.json, tokenizer files, *.safetensors, an index). Thread-safe."""

    @property
    def location(self) -> str:
        """Where it is, for messages: a path or an s3:// URL."""

    def files(self) -> Mapping[str, int]:
        """File name (relative, no sub-folders) → size in bytes."""

    def digests(self) -> Mapping[str, str]:
        """File name → recorded sha256 (hex), for the files whose digest is known; empty when none was ever recorded.

        Readers verify what they read against it and raise `cycleqd.errors.IntegrityError` on a difference.
        """

    def read_range(self, name: str, start: int, stop: int) -> Buffer:
        """Bytes [start, stop) of a file: exactly these, or an error that names the file.

        Args:
            name: Name of the file.
            start: First byte.
            stop: Byte after the last one.
        """


class Writer(Protocol):
    """One file being written from front to back."""

    def write(self, data: Buffer) -> None:
        """Append to the file.

        Args:
            data: The writer may still read it after this returns: do not change it.
        """

    def close(self) -> str:
        """Complete the file and return its sha256 (hex), computed while writing. The file appears only now."""

    def abort(self) -> None:
        """Give the file up, at any time, and leave nothing half-written behind.

        A closed file is removed again, too, unless others may write and record the same one, as in S3: it is whole.
        """


class Sink(Protocol):
    """A checkpoint folder being written. Several writers may be open at once."""

    @property
    def location(self) -> str:
        """Where it is, for messages."""

    def create(self, name: str, size: int) -> Writer:
        """Start a file.

        Args:
            name: Name of the file.
            size: Its bytes, known in advance: safetensors headers fix them.
        """

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the shards and the index that an earlier run, of another shard size, left here.

        Args:
            names: Files of this run.
        """
