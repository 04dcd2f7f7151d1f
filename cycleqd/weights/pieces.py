"""The tokens of a sentencepiece model: a protocol buffer whose field 1 is a piece, in whose field 1 its text stands."""

from __future__ import annotations

from collections.abc import Iterator

_SKIPPED = {1: 8, 5: 4}  # bytes of numbers of a fixed size, by the wire's type
_VARINT, _BYTES = 0, 2


def pieces(data: bytes) -> list[str]:
    """The pieces, a token each; a token's id is its place.

    Args:
        data: The file's content.

    Raises:
        ValueError: It is no such file.
    """
    try:
        found = [text.decode() for field, piece in _fields(data) if field == 1 for n, text in _fields(piece) if n == 1]
    except IndexError as error:
        raise ValueError("it ends within a number") from error
    if not found:
        raise ValueError("it holds no pieces")
    return found


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field that holds bytes."""
    position = 0
    while position < len(data):
        key, position = _number(data, position)
        kind = key & 7
        if kind == _BYTES:
            length, position = _number(data, position)
            if position + length > len(data):
                raise ValueError(f"it ends at byte {len(data)}, within a field")
            yield key >> 3, data[position : position + length]
            position += length
        elif kind == _VARINT:
            _, position = _number(data, position)
        elif kind in _SKIPPED:
            position += _SKIPPED[kind]
        else:
            raise ValueError(f"it has no field at byte {position}")


def _number(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length number, and where it ends."""
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1
