"""Models written to S3: merged, mutated and combined, as full checkpoints or as cores in the span."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.place import Place
from cycleqd.search.records import Child, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, load_core, save_core
from cycleqd.storage.evolution import size_in_bytes
from cycleqd.storage.models import device, opened, sink, source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock
from cycleqd.weights import aggregate, merge, span
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.manifest import Manifest

Recipe = Sequence[tuple[ModelRef, float]]
"""Models and coefficients β of θ_base + Σ β τ."""


def merge_cores(store: Store, config: Config, child: Child) -> Manifest:
    """Write a child's core before its mutation.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
    """
    merged = span.merge(cores(store, child.parents), Drawn(config.method.crossover, child.crossover))
    return save_core(store, layout.merged(child.id), merged)


def merge_dense(store: Store, config: Config, child: Child, place: Place, clock: Clock) -> Manifest:
    """Write a child's full checkpoint: mutated (fused), or the intermediate.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
        place: Where to work.
        clock: Keeps the seconds and the device.
    """
    clock.facts["device"] = where = device(place)
    with ExitStack() as stack:
        with clock.part("open"):
            base, *parents = stack.enter_context(opened(store, place, [child.base, *child.parents]))
        with clock.part("merge"):
            return merge.merge(
                base,
                parents,
                Drawn(config.method.crossover, child.crossover),
                sink(store, layout.checkpoint(child.id) if place.fused else layout.merged(child.id)),
                mutation=Drawn(config.method.mutation, child.mutation) if place.fused else None,
                threads=place.threads,
                device=where,
                shard_size=size_in_bytes(config.models.shard_size),
                progress=counting(child.id, "bytes merged", base.nbytes),
            )


def mutate_core(store: Store, child: Child, merged: Manifest, mutation: Drawn[Mutation], threads: int) -> Manifest:
    """Write a child's core after its mutation.

    Args:
        store: The evolution.
        child: From the generation's plan.
        merged: The intermediate's files.
        mutation: The operator and what it drew for the child.
        threads: CPU threads.
    """
    core = load_core(store, layout.merged(child.id), merged)
    return save_core(store, layout.checkpoint(child.id), span.mutate(core, mutation, threads))


def mutate_dense(
    store: Store,
    child: Child,
    merged: Manifest,
    mutation: Drawn[Mutation],
    place: Place,
    shard_size: int,
    clock: Clock,
) -> Manifest:
    """Write a child's full checkpoint.

    Args:
        store: The evolution.
        child: From the generation's plan.
        merged: The intermediate's files.
        mutation: The operator and what it drew for the child.
        place: Where to work.
        shard_size: Bytes of a file of the checkpoint.
        clock: Keeps the seconds and the device.
    """
    clock.facts["device"] = where = device(place)
    with ExitStack() as stack:
        with clock.part("open"):
            (base,) = stack.enter_context(opened(store, place, [child.base]))
            unmutated = open_checkpoint(source(store, layout.merged(child.id), merged))
        with clock.part("mutate"):
            return merge.mutate(
                base,
                unmutated,
                mutation,
                sink(store, layout.checkpoint(child.id)),
                threads=place.threads,
                device=where,
                shard_size=shard_size,
                progress=counting(child.id, "bytes mutated", base.nbytes),
            )


def combine_cores(store: Store, model: str, recipe: Recipe) -> Manifest:
    """Write a linear combination of cores.

    Args:
        store: The evolution.
        model: Id of the combined model.
        recipe: Models and coefficients.
    """
    combined = span.combine(cores(store, [ref for ref, _ in recipe]), [beta for _, beta in recipe])
    return save_core(store, layout.checkpoint(model), combined)


def combine_dense(
    store: Store, config: Config, place: Place, model: str, base: ModelRef, recipe: Recipe, clock: Clock
) -> Manifest:
    """Write a linear combination of full checkpoints.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        model: Id of the combined model.
        base: The base.
        recipe: Models and coefficients.
        clock: Keeps the seconds.
    """
    models = [base, *(ref for ref, _ in recipe)]
    with clock.part("combine"), opened(store, place, models) as (theta, *experts):
        return aggregate.combine(
            theta,
            experts,
            [beta for _, beta in recipe],
            sink(store, layout.checkpoint(model)),
            threads=place.threads,
            shard_size=size_in_bytes(config.models.shard_size),
            progress=counting(model, "bytes combined", theta.nbytes),
        )
