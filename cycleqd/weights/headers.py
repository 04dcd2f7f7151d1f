"""The safetensors format: 8 bytes little-endian header length, a JSON header, the tensors' bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.outside import JSON_BYTES, parse_json
from cycleqd.weights.protocols import Buffer, Source

ITEM_SIZE = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
"""Bytes an element, by the format's dtype names."""

LFS = b"version "
"""How a Git LFS pointer begins: where a safetensors file has the length of its header."""

_POINTER = "{} is a pointer of Git LFS, not the file itself; run git lfs pull there."
_HEADER_LIMIT = 100_000_000  # the format's own limit
_HEADER_GUESS = 65_536  # most headers fit; one request instead of two


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: bytes [start, stop) of `file`, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start

    @property
    def item_size(self) -> int:
        """Bytes an element."""
        return ITEM_SIZE[self.dtype]


def read_header(source: Source, name: str, size: int) -> list[TensorInfo]:
    """The tensors of one file of a source, by offset.

    Args:
        source: The folder.
        name: The file's name.
        size: Its bytes.

    Raises:
        InvalidInputError: The file is truncated or no safetensors file.
    """
    file = f"{source.location}/{name}"
    start = bytes(source.read_range(name, 0, min(size, _HEADER_GUESS)))
    length = header_length(start[:8], file, size)
    if 8 + length > len(start):
        start += bytes(source.read_range(name, len(start), 8 + length))
    return parse_header(start[8 : 8 + length], file, size, name)


def read_object(read: Callable[[str, int, int], Buffer], folder: str, name: str, size: int) -> dict[str, Any]:
    """A JSON object that is a file of a folder.

    Args:
        read: Reads bytes [start, stop) of a file of the folder.
        folder: Its location, for messages.
        name: The file's name.
        size: Its bytes.

    Raises:
        InvalidInputError: The file is something else.
    """
    try:
        text = bytes(read(name, 0, min(size, JSON_BYTES + 1)))
        if text.startswith(LFS):
            raise InvalidInputError(_POINTER.format(f"{folder}/{name}"))
        content = parse_json(text)
    except ValueError as error:
        raise InvalidInputError(f"{name} of {folder} is not JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{name} of {folder} is not a JSON object; fetch it again.")
    return content


def header_length(first_bytes: bytes, file: str, size: int) -> int:
    """The length of the JSON header.

    Args:
        first_bytes: The file's first 8 bytes.
        file: Names the file in messages.
        size: Bytes of the file.

    Raises:
        InvalidInputError: this cannot be a safetensors file, or is only a pointer to one.
    """
    if first_bytes == LFS:
        raise InvalidInputError(_POINTER.format(file))
    length = int.from_bytes(first_bytes, "little")
    if size < 8 or length > min(size - 8, _HEADER_LIMIT):
        raise InvalidInputError(f"{file} is truncated or not a safetensors file: {size:,} bytes; fetch it again.")
    return length


def parse_header(text: bytes, file: str, size: int, name: str) -> list[TensorInfo]:
    """The tensors of one file, by offset.

    Args:
        text: The JSON header.
        file: Names the file in messages.
        size: Bytes of the file.
        name: The file's name.

    Raises:
        InvalidInputError: a broken header, gaps or overlaps, sizes that do not fit the shapes, truncation.
    """
    try:
        entries = parse_json(text, _HEADER_LIMIT)
        entries.pop("__metadata__", None)
        tensors = [_tensor(key, entry, name, 8 + len(text)) for key, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{file} has a broken safetensors header ({error}); fetch it again.") from error
    tensors.sort(key=lambda t: (t.start, t.stop))
    position = 8 + len(text)
    for tensor in tensors:
        if tensor.start != position or tensor.nbytes != math.prod(tensor.shape) * tensor.item_size:
            raise InvalidInputError(
                f"{file} has a broken safetensors header at {tensor.name}: offsets and shape disagree."
            )
        position = tensor.stop
    if position != size:
        raise InvalidInputError(
            f"{file} is truncated: {size:,} bytes, its header describes {position:,}; fetch it again."
        )
    return tensors


def _tensor(key: str, entry: dict[str, Any], file: str, data_start: int) -> TensorInfo:
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in ITEM_SIZE:
        raise ValueError(f"unknown dtype {entry['dtype']} of {key}")
    shape = tuple(entry["shape"])
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {list(shape)} or offsets {entry['data_offsets']} of {key}")
    return TensorInfo(key, entry["dtype"], shape, file, data_start + start, data_start + stop)


def build_header(tensors: Sequence[TensorInfo]) -> bytes:
    """Length and JSON header of a file.

    Padded with spaces to a multiple of 8, as the reference implementation does.

    Args:
        tensors: In the order of writing; `start` and `stop` count from the first tensor's first byte.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for t in tensors:
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.stop]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
