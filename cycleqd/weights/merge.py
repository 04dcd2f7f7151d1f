"""Crossover (paper, section 3.2) and mutation of whole checkpoints: one child from its parents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.mutation import Mutation
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.protocols import Sink
from cycleqd.weights.recipe import Combination, Weighted
from cycleqd.weights.stream import Progress, write_checkpoint

SHARD_SIZE = 5_000_000_000
"""Bytes of a shard, unless the config says otherwise."""

_NO_WEIGHT = 1e-9  # below what fp32 can show; weights sum to 1 only up to rounding


def merge(
    base: Checkpoint,
    parents: Sequence[Checkpoint],
    crossover: Drawn[Crossover],
    sink: Sink,
    *,
    mutation: Drawn[Mutation] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Manifest:
    """Write the child of K parents and return its manifest.

    Each value is computed in fp32 and rounded once to the base's storage dtype; with a mutation, τ is taken again from
    the rounded value, so that merging and mutating separately gives the same bytes. A mean with ω = (1, 0) gives the
    first parent bit for bit. After an error nothing is left in the sink.

    Args:
        base: θ_base.
        parents: Fine-tuned from the base, or children of such models.
        crossover: Combines the parents' task vectors.
        sink: Where the child is written.
        mutation: Changes the child's task vector on the way; None: not now.
        threads: CPU threads; None: all processors. The bytes are the same.
        device: Where matrices are mutated; "cuda" may differ in the last bits.
        shard_size: Most bytes of a file.
        progress: Called with the number of bytes written since the last call.

    Raises:
        InvalidInputError: models do not fit together, or hold NaN or Inf.
        IntegrityError: what was read is not what was recorded.
        UnavailableError: the disk is full, or the store fails.
    """

    def weights(tensor: str) -> Weighted:
        return weighted(base, parents, crossover.operator.coefficients(crossover.values, tensor))

    for name in base.tensors:  # what is no combination at all is refused before anything is written
        weights(name)
    refuse_problems(base, parents)
    recipe = Combination(base, weights, mutation, device)
    return write_checkpoint(base, recipe, sink, shard_size=shard_size, threads=threads, progress=progress)


def mutate(
    base: Checkpoint,
    merged: Checkpoint,
    mutation: Drawn[Mutation],
    sink: Sink,
    *,
    threads: int | None = None,
    device: str = "cpu",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Manifest:
    """Write a merged child mutated and return its manifest: the bytes that merging with this mutation gives.

    Args:
        base: θ_base.
        merged: The child as `merge` wrote it without mutation.
        mutation: Changes the child's task vector.
        sink: Where the child is written.
        threads: CPU threads; None: all processors. The bytes are the same.
        device: Where matrices are mutated; "cuda" may differ in the last bits.
        shard_size: Most bytes of a file.
        progress: Called with the number of bytes written since the last call.
    """
    refuse_problems(base, [merged])
    recipe = Combination(base, lambda tensor: [(merged, 1.0)], mutation, device)
    return write_checkpoint(base, recipe, sink, shard_size=shard_size, threads=threads, progress=progress)


def weighted(base: Checkpoint, models: Sequence[Checkpoint], coefficients: Sequence[float]) -> Weighted:
    """θ_base + Σ c_i τ_i as models with weights that sum to 1: those with a weight, and the base with what is left.

    Args:
        base: θ_base.
        models: K models.
        coefficients: c_i, one a model.

    Raises:
        InvalidInputError: there is not one finite coefficient a model.
    """
    if len(models) != len(coefficients) or not all(map(math.isfinite, coefficients)):
        raise InvalidInputError(
            f"Combining {len(models)} models needs as many finite coefficients, not {list(coefficients)}."
        )
    rest = 1.0 - math.fsum(coefficients)
    found = [(model, value) for model, value in zip(models, coefficients, strict=True) if value]
    return [(base, rest), *found] if abs(rest) > _NO_WEIGHT else found
