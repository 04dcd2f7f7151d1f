"""Crossover (paper, section 3.2): θ_base + Σ ω_i τ_i / Σ ω_i, fused with mutation where one is given."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.mutation import MutationSpec, Seed
from cycleqd.weights.protocols import Sink
from cycleqd.weights.recipe import Combination
from cycleqd.weights.stream import Progress, write_checkpoint

SHARD_SIZE = 5_000_000_000
"""Bytes of a shard, unless the config says otherwise."""


def merge(
    base: Checkpoint,
    parents: Sequence[Checkpoint],
    omega: Sequence[float],
    sink: Sink,
    *,
    mutation: MutationSpec | None = None,
    seed: Seed = 0,
    threads: int | None = None,
    device: str = "cpu",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Manifest:
    """Write the child of K parents and return its manifest.

    Each value is computed in fp32 and rounded once to the base's storage dtype; with `mutation`, τ is taken again from
    the rounded value, so that merging and mutating separately gives the same bytes. ω = (1, 0) gives the first parent
    bit for bit. `seed` is the mutation's; `threads` (default: all processors) changes no byte; `device` is where
    matrices are mutated ("cuda" may differ in the last bits). Raises InvalidInputError, IntegrityError,
    UnavailableError; then nothing is left in the sink.
    """
    total = math.fsum(omega)
    if len(omega) != len(parents) or not parents or not math.isfinite(total) or total == 0:
        raise InvalidInputError(
            f"Merging {len(parents)} parents needs as many finite ω with a sum other than 0, not {list(omega)}."
        )
    refuse_problems(base, parents)
    weights = [(parent, value / total) for parent, value in zip(parents, omega, strict=True) if value]
    recipe = Combination(base, weights, mutation, seed, device)
    return write_checkpoint(base, recipe, sink, shard_size=shard_size, threads=threads, progress=progress)
