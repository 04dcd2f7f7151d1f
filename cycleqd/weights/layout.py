"""How the tensors of a result are laid out: shards of at most a given size, and the index."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from cycleqd.weights.headers import TensorInfo, build_header

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
"""The one file of a model that has no shards."""


@dataclass(frozen=True)
class Shard:
    """One file to be written: `header`, then `tensors` in order (offsets count from the end of the header)."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(t.nbytes for t in self.tensors)


def leftovers(present: Iterable[str], wanted: Collection[str]) -> list[str]:
    """The shards and indexes among a folder's files that are not wanted: an earlier run's, of another shard size.

    Args:
        present: Names of the files in the folder.
        wanted: Names to keep.
    """
    return [n for n in present if n.startswith("model") and n.endswith((".safetensors", INDEX)) and n not in wanted]


def plan_shards(tensors: Sequence[TensorInfo], shard_size: int) -> list[Shard]:
    """Fill shards in the given order (a tensor larger than a shard gets one of its own).

    Names follow Hugging Face. Within a shard wider dtypes come first, so that every tensor is aligned to its item size,
    and tensors of one shape are neighbours, so that a GPU can compute the matrices of several layers together.

    Args:
        tensors: Tensors of the result.
        shard_size: Most bytes of tensors in a shard.
    """
    groups: list[list[TensorInfo]] = [[]]
    used = 0
    for tensor in tensors:
        if groups[-1] and used + tensor.nbytes > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    return [_shard(group, number, len(groups)) for number, group in enumerate(groups, start=1)]


def _shard(group: list[TensorInfo], number: int, count: int) -> Shard:
    name = WHOLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    placed: list[TensorInfo] = []
    position = 0
    for tensor in sorted(group, key=lambda t: (-t.item_size, t.shape)):
        placed.append(replace(tensor, file=name, start=position, stop=position + tensor.nbytes))
        position += tensor.nbytes
    return Shard(name, build_header(placed), tuple(placed))


def index_json(shards: Sequence[Shard]) -> bytes:
    """`model.safetensors.index.json`, for results of more than one shard.

    Args:
        shards: All shards of the result.
    """
    tensors = [t for shard in shards for t in shard.tensors]
    metadata = {
        "total_parameters": sum(math.prod(t.shape) for t in tensors),
        "total_size": sum(t.nbytes for t in tensors),
    }
    weight_map = {t.name: t.file for t in sorted(tensors, key=lambda t: t.name)}
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n").encode()
