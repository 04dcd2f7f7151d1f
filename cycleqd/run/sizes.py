"""Bytes of what an evolution stores, from the headers of base and experts; nothing is read but those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.evaluation.engines.vllm import RANKS
from cycleqd.search.config import Config
from cycleqd.storage.staging import parts, total_ranks
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.kinds import MATRIX, carried_by_none, kind_of
from cycleqd.weights.lora import LoraAdapter

_FLOAT32, _HALF = 4, 2


@dataclass(frozen=True)
class Sizes:
    """Bytes of models.

    Attributes:
        given: Base and experts, as they come.
        largest: The largest of them.
        seeded: What seeding makes of them for a search in the span: extracted adapters and the basis; else 0.
        child: One child: its full checkpoint, or its core, if no direction of the experts depends on the others.
        adapter: What an engine loads of a child in the span, in its own dtype; made where it is used, never stored.
        slot: What vLLM sets aside of the device's memory for one adapter, at its own rank: one of 8, 16, 32, 64 … 512.
        swapped: The full checkpoint that it loads in place of an adapter where `models.keep_dense`; else 0.
    """

    given: int
    largest: int
    seeded: int
    child: int
    adapter: int = 0
    slot: int = 0
    swapped: int = 0


def sizes(config: Config, opened: Mapping[str, Checkpoint | LoraAdapter]) -> Sizes:
    """The bytes of an evolution's models.

    Args:
        config: The configuration, `models.weights` decided.
        opened: Base and experts by id, the base first; all of them in the span.
    """
    each = [sum(parts(model).values()) for model in opened.values()]
    base, *experts = opened.values()
    if not config.in_span or not isinstance(base, Checkpoint):
        return Sizes(sum(each), max(each), seeded=0, child=max(each))
    extracted = sum(expert.rank or 0 for expert in config.models.experts.values())
    seeded = cores = sides = width = 0
    for name, rank in total_ranks(config, base, experts).items():
        out, inputs = base.tensors[name].shape
        a, b = min(out, rank), min(inputs, rank)
        seeded += out * a + inputs * b + (out + inputs) * extracted
        cores += a * b
        sides += out + inputs
        width = max(width, min(a, b))
    if config.models.keep_dense:
        cores += len(config.extracted) * len(carried_by_none(base))
        return Sizes(sum(each), max(each), _FLOAT32 * seeded, _FLOAT32 * cores, swapped=each[0])
    item = _item_size(config, base)
    rank = next((rank for rank in RANKS if rank >= width), width)
    slot = item * rank * _sides_in_vllm(base)
    return Sizes(sum(each), max(each), _FLOAT32 * seeded, _FLOAT32 * cores, item * sides * width, slot)


def _sides_in_vllm(base: Checkpoint) -> int:
    """Rows and columns of all matrices that vLLM keeps room for, whether an adapter has them or not: those of layers,
    embeddings, and the head, also where it is tied to the embeddings.
    """
    kinds = {name: kind_of(base, name) for name in base.tensors}
    times = {MATRIX: 1, "embeddings": 2 if base.setting("tie_word_embeddings") else 1, "heads": 1}
    return sum(times.get(kinds[name], 0) * sum(tensor.shape) for name, tensor in base.tensors.items())


def _item_size(config: Config, base: Checkpoint) -> int:
    """Bytes of a number in the engine."""
    if config.evaluation.dtype != "auto":
        return _FLOAT32 if config.evaluation.dtype == "float32" else _HALF
    return max(tensor.item_size for tensor in base.tensors.values() if tensor.dtype in FLOATS)
