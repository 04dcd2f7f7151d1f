"""Independent random streams, one for each (evolution seed, generation, child, purpose), in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

Purpose = Literal["parents", "omega", "mutation", "coefficients"]

_CHUNK = 1 << 20  # elements of a tensor that share a stream


def stream(seed: int, generation: int, child: int, purpose: Purpose) -> np.random.Generator:
    """The Generator (PCG64) of one purpose of one child. Equal arguments give equal draws; others are independent.

    SeedSequence mixes the four values; the purpose enters as 32 bits of its sha256, so adding one shifts no other.

    Args:
        seed: The evolution's seed.
        generation: Generation, from 0.
        child: Index of the child in its generation.
        purpose: What is drawn.
    """
    tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(generation, child, tag))))


def integer_seed(rng: np.random.Generator) -> int:
    """A seed for another random stream, in [0, 2^53): exact in every JSON reader.

    Args:
        rng: The stream to draw it from.
    """
    return int(rng.integers(2**53))


def tensor_stream(seed: int, tensor: str, *chunk: int) -> np.random.Generator:
    """A stream of its own for each tensor (and chunk of it), so that order and threads change nothing.

    Args:
        seed: The seed that was drawn for the child.
        tensor: Name of the tensor.
        chunk: Index of a chunk of the tensor, or nothing.
    """
    words = np.frombuffer(hashlib.sha256(tensor.encode()).digest()[:16], dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*map(int, words), *chunk)))


def chunks(start: int, count: int) -> Iterator[tuple[int, slice, slice]]:
    """The chunks that a piece of a flat tensor lies in: with a stream for each, it does not matter how it is cut.

    Yields the chunk's index, which elements of the chunk are in the piece, and where they are in the piece.

    Args:
        start: Position of the piece's first element in the tensor.
        count: Elements of the piece.
    """
    for chunk in range(start // _CHUNK, -(-(start + count) // _CHUNK)):
        first, last = max(start, chunk * _CHUNK), min(start + count, (chunk + 1) * _CHUNK)
        yield chunk, slice(first - chunk * _CHUNK, last - chunk * _CHUNK), slice(first - start, last - start)
