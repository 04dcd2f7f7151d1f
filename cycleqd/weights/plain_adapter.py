"""Writing adapters in the one plain form that peft and vLLM read alike.

One rank for all matrices (smaller ones are padded with zeros), lora_alpha equal to it, so that the scaling is 1, the
full names of the modules as target_modules, and no patterns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType

import torch

from cycleqd.errors import InvalidInputError
from cycleqd.weights.headers import TensorInfo, build_header
from cycleqd.weights.lora import CONFIG, WEIGHTS
from cycleqd.weights.manifest import FileEntry, Manifest
from cycleqd.weights.protocols import Sink, Writer
from cycleqd.weights.stream import Progress
from cycleqd.weights.tensors import DTYPES, NotFiniteError, rounded, to_bytes

Factors = tuple[torch.Tensor, torch.Tensor]
"""B [out, r] and A [r, in] of one matrix's task vector B A, float32, the adapter's scaling in B."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_adapter(
    sink: Sink,
    matrices: Mapping[str, Factors],
    base_model: str,
    dtype: torch.dtype = torch.float32,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> Manifest:
    """Write matrices as an adapter whose rank is their largest, and return its manifest.

    Args:
        sink: The adapter's folder.
        matrices: (B, A) by the base's tensor names; at least one. Ranks may differ.
        base_model: What the adapter names as its base: a path or a name on Hugging Face.
        dtype: What B and A are rounded to: float32, bfloat16 or float16.
        beside: Other files of the folder.

    Raises:
        InvalidInputError: A factor holds NaN or Inf, or is too large for `dtype`.
    """
    names = sorted(matrices)
    shapes = {name: (matrices[name][0].shape[0], matrices[name][1].shape[1]) for name in names}
    rank = max([1, *(a.shape[0] for _, a in matrices.values())])
    return stream_adapter(sink, shapes, rank, (matrices[name] for name in names), base_model, dtype, beside=beside)


def stream_adapter(
    sink: Sink,
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    factors: Iterable[Factors],
    base_model: str,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> Manifest:
    """Write an adapter whose factors are made one after another, and return its manifest.

    Nothing appears in the sink until all of it is written; on a failure nothing stays.

    Args:
        sink: The adapter's folder.
        shapes: [out, in] of each matrix by the base's tensor name, in the order of `factors`; at least one.
        rank: The adapter's rank; factors of a smaller one are padded with zeros.
        factors: (B, A) of each matrix.
        base_model: What the adapter names as its base: a path or a name on Hugging Face.
        dtype: What B and A are rounded to: float32, bfloat16 or float16.
        progress: Called with the number of bytes written since the last call.
        beside: Other files of the folder.

    Raises:
        InvalidInputError: A factor holds NaN or Inf, or is too large for `dtype`.
    """
    tensors = _layout(shapes, rank, dtype)
    header = build_header(tensors)
    whole = {CONFIG: _config([_module(name) for name in shapes], rank, base_model), **beside}
    sizes = {file: len(content) for file, content in whole.items()}
    sizes[WEIGHTS] = len(header) + sum(tensor.nbytes for tensor in tensors)
    with ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for file, size in sizes.items():
            writers[file] = sink.create(file, size)
            stack.callback(writers[file].abort)
        for file, content in whole.items():
            writers[file].write(content)
        writers[WEIGHTS].write(header)
        for name, (b, a) in zip(shapes, factors, strict=True):
            for data in (_padded(name, a, (rank, a.shape[1]), dtype), _padded(name, b, (b.shape[0], rank), dtype)):
                writers[WEIGHTS].write(data)
                if progress:
                    progress(len(data))
        manifest = Manifest({file: FileEntry(sizes[file], writers[file].close()) for file in sizes})
        stack.pop_all()
    return manifest


def _layout(shapes: Mapping[str, tuple[int, int]], rank: int, dtype: torch.dtype) -> list[TensorInfo]:
    """A and B of every matrix, one behind the other."""
    placed: list[TensorInfo] = []
    for name, (out, inputs) in shapes.items():
        for side, shape in (("A", (rank, inputs)), ("B", (out, rank))):
            start = placed[-1].stop if placed else 0
            key = f"base_model.model.{_module(name)}.lora_{side}.weight"
            stop = start + shape[0] * shape[1] * dtype.itemsize
            placed.append(TensorInfo(key, _NAMES[dtype], shape, WEIGHTS, start, stop))
    return placed


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _padded(name: str, factor: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> memoryview:
    """The bytes of a factor, filled up with zeros to a shape."""
    padded = torch.zeros(shape)
    padded[: factor.shape[0], : factor.shape[1]] = factor
    try:
        return to_bytes(rounded(padded.reshape(-1), dtype))
    except NotFiniteError as error:
        raise InvalidInputError(
            f"A factor of {name} holds NaN or Inf, or is too large for {dtype}; use bfloat16 or smaller coefficients."
        ) from error


def _config(modules: list[str], rank: int, base_model: str) -> bytes:
    content = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(content, indent=2) + "\n").encode()
