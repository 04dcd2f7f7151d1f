"""Models written to S3: adapters, basis and cores of experts; merged, mutated and combined, dense or in the span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.mutation import CoreMutation, Mutation
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, load_merged, opened_basis, save_core, save_merged
from cycleqd.storage.evolution import manifest, manifest_json, model_ref, size_in_bytes
from cycleqd.storage.models import device, open_model, opened, sink, source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock
from cycleqd.weights import aggregate, merge, span
from cycleqd.weights.basis import Basis, write_basis
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.densified import Densified
from cycleqd.weights.extract import extract
from cycleqd.weights.kinds import carried_by_none
from cycleqd.weights.lora import LoraAdapter, open_adapter
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.plain_adapter import write_adapter
from cycleqd.weights.protocols import Sink
from cycleqd.weights.stream import write_checkpoint
from cycleqd.weights.tokenizer import Tokenizer

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
    return save_merged(store, child.id, merged)


def merge_dense(store: Store, config: Config, child: Child, place: Place, fused: bool, clock: Clock) -> Manifest:
    """Write a child's full checkpoint: mutated (fused), or the intermediate.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
        place: Where to work.
        fused: Mutate on the way.
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
                sink(store, layout.checkpoint(child.id) if fused else layout.merged(child.id)),
                mutation=Drawn(config.method.mutation, child.mutation) if fused else None,
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
    core = load_merged(store, child.id, merged.digest)
    mutated = span.mutate(core, mutation, threads, shapes_for(store, child, mutation))
    return save_core(store, mutated)


def shapes_for(store: Store, child: Child, mutation: Drawn[Mutation]) -> Mapping[str, tuple[int, ...]]:
    """The base's shapes, where a mutation of cores asks for them.

    Args:
        store: The evolution.
        child: Names the base.
        mutation: The operator.
    """
    if not isinstance(mutation.operator, CoreMutation):
        return {}
    return {name: tensor.shape for name, tensor in open_model(store, child.base).tensors.items()}


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


def combine_cores(
    store: Store, config: Config, place: Place, model: str, base: ModelRef, recipe: Recipe
) -> dict[str, JSON]:
    """Write a linear combination of cores; of the final model what others load, too: the PEFT adapter, or the full
    checkpoint where no adapter is the same model.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        model: Id of the combined model.
        base: The base.
        recipe: Models and coefficients.

    Returns:
        The files by what they are, as records hold them.
    """
    combined = span.combine(cores(store, [ref for ref, _ in recipe]), [beta for _, beta in recipe])
    written = {"checkpoint": manifest_json(save_core(store, combined))}
    if model == "final" and combined.dense:
        target, shard_size = sink(store, layout.full(model)), size_in_bytes(config.models.shard_size)
        written["full"] = manifest_json(write_full(store, place, model, combined, target, shard_size))
    elif model == "final":
        target = sink(store, layout.adapter(model))
        written["adapter"] = manifest_json(write_peft(store, place, combined, target, base.digest, None))
    return written


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


def extract_adapter(
    store: Store, config: Config, place: Place, base: ModelRef, expert: ModelRef, rank: int, model: str
) -> tuple[Manifest, JSON]:
    """Write the adapter of a rank that is nearest to a full expert.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        base: The base.
        expert: The full checkpoint.
        rank: The adapter's rank.
        model: Id of the adapter.

    Returns:
        Its files; and the share of ‖τ‖² that it keeps, in total and by matrix, and by kind what no adapter carries: it
        is kept beside adapters (`models.keep_dense`), or dropped.
    """
    with opened(store, place, [base, expert]) as (theta, full):
        found = extract(
            theta,
            full,
            rank,
            sink(store, layout.checkpoint(model)),
            base_model=base.digest,
            keep_dense=config.models.keep_dense,
            threads=place.threads,
            device=device(place),
            progress=counting(model, "bytes extracted", theta.nbytes),
        )
    matrices = {name: energy.kept / energy.total for name, energy in found.matrices.items()}
    others = "dense" if config.models.keep_dense else "dropped"
    return found.manifest, {"total": found.kept, "matrices": matrices, others: found.other_shares}


def span_adapters(store: Store, place: Place, base: ModelRef, adapters: Sequence[ModelRef]) -> Manifest:
    """Write the shared basis of adapters.

    Args:
        store: The evolution.
        place: Where to work.
        base: The base.
        adapters: The experts' adapters.
    """
    theta, found = open_adapters(store, base, adapters)
    names = [name for name in theta.tensors if any(name in adapter.matrices for adapter in found)]
    target = sink(store, layout.checkpoint(layout.BASIS))
    written = write_basis(names, lambda name: [each.factors(name) for each in found], target, place.threads)
    for adapter in found:
        adapter.finish()
    return written


def expert_core(
    store: Store, place: Place, basis: Basis, base: ModelRef, shared: ModelRef, adapter: ModelRef
) -> span.Core:
    """An adapter as a core of the basis.

    Args:
        store: The evolution.
        place: Where to work.
        basis: The basis.
        base: Id and digest of the base.
        shared: Id and digest of the basis.
        adapter: The adapter.
    """
    _, (found,) = open_adapters(store, base, [adapter])
    matrices = span.project(basis, found.factors, place.threads)
    found.finish()
    return span.Core(base.digest, shared.digest, matrices)


def open_adapters(store: Store, base: ModelRef, adapters: Sequence[ModelRef]) -> tuple[Checkpoint, list[LoraAdapter]]:
    """The base's headers, and adapters in S3, whose bytes are verified when they are `finish`ed.

    Args:
        store: The evolution.
        base: The base.
        adapters: The adapters.
    """
    theta = open_model(store, base)
    sources = [source(store, layout.checkpoint(ref.id), manifest(store, ref.id)) for ref in adapters]
    return theta, [open_adapter(found, theta) for found in sources]


def write_peft(
    store: Store, place: Place, core: span.Core, target: Sink, base_model: str, rank: int | None
) -> Manifest:
    """A core as a PEFT adapter's folder, in float32, with the base's tokenizer, chat template and end tokens.

    Args:
        store: The evolution.
        place: Names the cache's size.
        core: The model.
        target: Where the folder is written.
        base_model: What the adapter names as its base: a path or a name on Hugging Face.
        rank: Cut to this rank; None: nothing is cut.
    """
    beside = Tokenizer(open_model(store, model_ref(store, "base")).source).files()
    with opened_basis(store, place) as basis:
        return write_adapter(target, span.low_rank(basis, core, rank), base_model, beside=beside)


def with_dense(store: Store, config: Config, core: span.Core, name: str) -> span.Core:
    """An expert's core with what no adapter carries of it, where the configuration keeps that.

    Args:
        store: The evolution.
        config: Its configuration.
        core: The expert's core, of matrices alone.
        name: The expert's name.
    """
    if not config.models.keep_dense:
        return core
    coefficients = torch.tensor([float(source == f"source-{name}") for source in config.extracted])
    names = carried_by_none(open_model(store, model_ref(store, "base")))
    full = tuple(model_ref(store, source) for source in config.extracted)
    return replace(core, full=full, dense={tensor: coefficients.clone() for tensor in names})


def write_full(
    store: Store, place: Place, model: str, core: span.Core, target: Sink, shard_size: int, often: bool = False
) -> Manifest:
    """A core merged into the base, with what it has of full experts: a full checkpoint, rounded once.

    Args:
        store: The evolution.
        place: Where to work.
        model: The model's id, for the progress.
        core: The model.
        target: Where the checkpoint is written.
        shard_size: Bytes of one of its files.
        often: Whether this process writes many; see `cycleqd.storage.models.opened`.
    """
    read = [model_ref(store, "base"), *core.full]
    with opened_basis(store, place) as basis, opened(store, place, read, often) as (base, *full):
        recipe = Densified(base, basis, core, full)
        bar = counting(model, "bytes merged", base.nbytes)
        return write_checkpoint(base, recipe, target, shard_size=shard_size, threads=place.threads, progress=bar)
