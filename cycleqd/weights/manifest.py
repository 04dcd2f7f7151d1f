"""The identity of a checkpoint: its files' sizes and digests, and one digest over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.errors import IntegrityError
from cycleqd.outside import is_name, parse_json

CORE = "core.safetensors"
"""The one file of a model in the span of low-rank experts (see cycleqd.weights.span)."""


@dataclass(frozen=True)
class FileEntry:
    """One file: its size in bytes and its sha256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file of a checkpoint, by name. Two checkpoints are the same exactly when their digests are equal."""

    files: Mapping[str, FileEntry]

    def __post_init__(self) -> None:
        """Refuse names of files that are not directly in the checkpoint's folder, before anything is written there."""
        for name, entry in self.files.items():
            if not is_name(name) or "/" in name or entry.size < 0:
                raise IntegrityError(
                    f"a checkpoint manifest names {name[:200]!r} ({entry.size} bytes), which is no file of a folder; it"
                    " was altered: restore it"
                )

    @staticmethod
    def of_core(data: bytes) -> Manifest:
        """The files of a model that is a core.

        Args:
            data: Its one file's content.
        """
        return Manifest({CORE: FileEntry(len(data), hashlib.sha256(data).hexdigest())})

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the files, sorted by name: the checkpoint's identity."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def is_core(self) -> bool:
        """Whether the model is kept as a core in the span of low-rank experts."""
        return set(self.files) == {CORE}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def digests(self) -> dict[str, str]:
        """File name → sha256, as sources want them."""
        return {name: entry.sha256 for name, entry in self.files.items()}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; the same text for the same content."""
        content = {name: {"size": e.size, "sha256": e.sha256} for name, e in self.files.items()}
        return json.dumps({"files": content}, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Raises:
            IntegrityError: it is anything else.
        """
        try:
            files = parse_json(text)["files"]
            return Manifest({name: FileEntry(int(e["size"]), str(e["sha256"])) for name, e in sorted(files.items())})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"This is not a checkpoint manifest ({error!r}): {text[:80]!r}.") from error
