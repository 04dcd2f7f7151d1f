"""Bytes of what an evolution stores, from the headers of base and experts; nothing is read but those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.search.config import Config
from cycleqd.storage.staging import parts, total_ranks
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.kinds import carried_by_none
from cycleqd.weights.lora import LoraAdapter

_FLOAT32 = 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of models.

    Attributes:
        given: Base and experts, as they come.
        largest: The largest of them.
        seeded: What seeding makes of them for a search in the span: extracted adapters and the basis; else 0.
        child: One child: its full checkpoint, or its core, if no direction of the experts depends on the others.
        adapter: What an engine loads of a child in the span, in 16 bits; made where it is used, never stored.
        swapped: The full checkpoint that it loads in place of an adapter where `models.keep_dense`; else 0.
    """

    given: int
    largest: int
    seeded: int
    child: int
    adapter: int = 0
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
    return Sizes(sum(each), max(each), _FLOAT32 * seeded, _FLOAT32 * cores, adapter=2 * sides * width)
