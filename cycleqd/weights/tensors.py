"""Bytes and torch tensors, and the arithmetic that merging is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cycleqd.weights.buffers import buffer
from cycleqd.weights.protocols import Buffer

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Storage dtypes of weights, by safetensors' names."""

BLOCK = 1 << 16
"""Elements worked on at a time: the fp32 scratch (256 KiB an array) stays in a core's second-level cache."""


class NotFiniteError(ArithmeticError):
    """A tensor holds NaN or Inf, or a result is too large for its storage dtype."""


def from_bytes(data: Buffer, dtype: str) -> torch.Tensor:
    """A flat tensor over the bytes, without copying.

    Args:
        data: Elements, row-major.
        dtype: By safetensors' name.
    """
    return torch.frombuffer(data, dtype=DTYPES[dtype])


def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat CPU tensor of any content, in memory that is used again.

    Args:
        count: Elements.
        dtype: Their dtype.
    """
    return torch.frombuffer(buffer(count * dtype.itemsize), dtype=dtype)


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, row-major, without copying.

    Args:
        tensor: On the CPU, contiguous.
    """
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def combine_blocks(arrays: Sequence[torch.Tensor], weights: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Σ w_i x_i for weights that sum to 1, in fp32, rounded once.

    Computed as x_0 + Σ_{i>0} w_i (x_i - x_0), two arrays in one pass: where the inputs are equal the result is that
    value exactly, and a single array of the same dtype is returned bit for bit.

    Args:
        arrays: x_i, flat CPU arrays of one length.
        weights: w_i.
        dtype: Of the result.

    Raises:
        NotFiniteError: NaN, Inf or overflow.
    """
    if len(arrays) == 1 and arrays[0].dtype == dtype:
        return finite(arrays[0])
    out = empty(len(arrays[0]), dtype)
    if len(arrays) == 2 and arrays[0].dtype == arrays[1].dtype == dtype:
        return finite(torch.lerp(arrays[0], arrays[1], weights[1], out=out))
    scratch = torch.empty(3, BLOCK)
    for start in range(0, len(out), BLOCK):
        first, *others = (array[start : start + BLOCK] for array in arrays)
        origin, diff, acc = scratch[:, : len(first)]
        origin.copy_(first)  # bf16 and fp32 in one operation take longer than a conversion and fp32
        acc.copy_(origin)
        for other, weight in zip(others, weights[1:], strict=True):
            diff.copy_(other)
            diff.sub_(origin)
            acc.add_(diff, alpha=weight)
        out[start : start + BLOCK].copy_(acc)
    return finite(out)


def rounded(array: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An array rounded once, in memory that is used again.

    Args:
        array: Flat, fp32.
        dtype: Of the result.

    Raises:
        NotFiniteError: the result holds NaN or Inf.
    """
    return finite(array if dtype == array.dtype else empty(len(array), dtype).copy_(array))


def finite(array: torch.Tensor) -> torch.Tensor:
    """The array itself, checked in one pass, at memory speed.

    Args:
        array: Any shape.

    Raises:
        NotFiniteError: it holds NaN or Inf.
    """
    if math.isfinite(float(array.sum())):  # several times faster; a finite array's sum may still overflow
        return array
    if not all(math.isfinite(bound) for bound in map(float, torch.aminmax(array))):
        raise NotFiniteError
    return array
