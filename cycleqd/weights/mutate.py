"""Mutation as a stage of its own, for a child that was merged before."""

from __future__ import annotations

from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.merge import SHARD_SIZE, merge
from cycleqd.weights.mutation import MutationSpec, Seed
from cycleqd.weights.protocols import Sink
from cycleqd.weights.stream import Progress


def mutate(
    base: Checkpoint,
    child: Checkpoint,
    sink: Sink,
    mutation: MutationSpec,
    *,
    seed: Seed,
    threads: int | None = None,
    device: str = "cpu",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Manifest:
    """Mutate the child's task vector: the second half of the fused path, since a merge of one parent is that parent."""
    return merge(
        base, [child], [1.0], sink, mutation=mutation, seed=seed, threads=threads, device=device, shard_size=shard_size,
        progress=progress,
    )  # fmt: skip
