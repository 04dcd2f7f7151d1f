"""Crossover (paper, section 3.2) and mutation of whole checkpoints: one child from its parents."""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.mutation import Mutation
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.crossover import Linear, merging
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.protocols import Sink
from cycleqd.weights.recipe import Combination
from cycleqd.weights.stream import Progress, write_checkpoint

SHARD_SIZE = 5_000_000_000
"""Bytes of a shard, unless the configuration sets another size."""


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
    merger = merging(base, parents, crossover)
    refuse_problems(base, parents)
    recipe = Combination(base, merger, mutation, device)
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
    recipe = Combination(base, Linear(lambda tensor: [(merged, 1.0)]), mutation, device)
    return write_checkpoint(base, recipe, sink, shard_size=shard_size, threads=threads, progress=progress)
