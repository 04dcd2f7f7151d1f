"""basis: the shared basis of the experts' low-rank task vectors, and each expert's core in it.

Experts that came as full checkpoints are turned into adapters first (`models.rank`). At the end every expert, as its
core gives it, is compared with what peft computes from the adapter itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.weights.lora import WEIGHTS, Adapter, open_adapter

from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cache import CheckpointCache
from cycleqd.storage.cores import opened_basis, save_core
from cycleqd.storage.evolution import load_config, manifest, manifest_json, model_ref, parse_place, size_in_bytes
from cycleqd.storage.failures import recorded
from cycleqd.storage.models import device, open_model, opened, sink, source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import logbook
from cycleqd.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from cycleqd.weights.basis import Basis
    from cycleqd.weights.span import Core

METHOD_VERSION = 1
"""Raise when the bytes of a basis, a core or an extracted adapter may change."""


def run(evolution: str, place: str) -> None:
    """Make what seeding's copies lack for a search in the span. Free for what has been made.

    Args:
        evolution: Name of the evolution.
        place: The section `place` as JSON.

    Raises:
        InvalidInputError: An expert's weights are broken, or its core does not give what peft gives.
    """
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "basis"):
        config = load_config(store)
        adapters = {name: adapter_of(store, config, where, name) for name in config.models.experts}
        make_basis(store, config, where, adapters)
        with opened_basis(store, where) as found:
            for name, adapter in adapters.items():
                make_core(store, where, found, name, adapter)
        logbook.log_basis(settings, store, config)


def adapter_of(store: Store, config: Config, place: Place, name: str) -> ModelRef:
    """The adapter of an expert: as it came, or extracted from the full checkpoint that came.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        name: The expert's name.
    """
    came = model_ref(store, f"source-{name}")
    if WEIGHTS in manifest(store, came.id).files:
        return came
    rank, base = config.models.experts[name].rank, model_ref(store, "base")
    assert rank is not None, "a full checkpoint is refused without a rank"
    inputs = {"base": base.to_json(), "expert": came.to_json(), "rank": rank}

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.extract import extract

        with clock.part("extract"), opened(store, place, [base, came]) as (theta, full):
            target = sink(store, layout.checkpoint(f"adapter-{name}"))
            bar = counting(f"expert '{name}'", "bytes extracted", theta.nbytes)
            found = extract(
                theta,
                full,
                rank,
                target,
                base_model=base.digest,
                threads=place.threads,
                device=device(place),
                progress=bar,
            )
        return {"checkpoint": manifest_json(found.manifest), "kept": found.to_json()}

    once(store, layout.stage(f"adapter-{name}", "make"), "basis", METHOD_VERSION, inputs, compute)
    return model_ref(store, f"adapter-{name}")


def make_basis(store: Store, config: Config, place: Place, adapters: Mapping[str, ModelRef]) -> None:
    """Write Q and P of every matrix that an adapter changes.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        adapters: Of each expert its adapter, in the configuration's order.
    """
    inputs = {"base": model_ref(store, "base").to_json(), "adapters": [ref.to_json() for ref in adapters.values()]}

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.basis import write_basis

        with clock.part("basis"):
            base, found = _adapters(store, list(adapters.values()))
            names = [name for name in base.tensors if any(name in adapter.matrices for adapter in found)]
            written = write_basis(
                names,
                lambda name: [adapter.factors(name) for adapter in found],
                sink(store, layout.checkpoint(layout.BASIS)),
                place.threads,
            )
            for adapter in found:
                adapter.finish()
        return {"checkpoint": manifest_json(written)}

    once(store, layout.stage(layout.BASIS, "make"), "basis", METHOD_VERSION, inputs, compute)


def make_core(store: Store, place: Place, basis: Basis, name: str, adapter: ModelRef) -> None:
    """Write an expert's core, after comparing what it gives with what peft gives.

    Args:
        store: The evolution.
        place: Where to work.
        basis: The basis.
        name: The expert's name.
        adapter: Its adapter.
    """
    base, shared = model_ref(store, "base"), model_ref(store, layout.BASIS)
    inputs = {"base": base.to_json(), "basis": shared.to_json(), "adapter": adapter.to_json()}

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.span import Core, project

        with clock.part("project"):
            _, (found,) = _adapters(store, [adapter])
            matrices = project(
                basis, lambda name: found.factors(name) if name in found.modules else None, place.threads
            )
        core = Core(base.digest, shared.digest, matrices)
        with clock.part("compare with peft"):
            clock.facts["difference_from_peft"] = compared(store, place, basis, core, adapter)
        return {"checkpoint": manifest_json(save_core(store, layout.checkpoint(f"expert-{name}"), core))}

    once(store, layout.stage(f"expert-{name}", "make"), "basis", METHOD_VERSION, inputs, compute)


def compared(store: Store, place: Place, basis: Basis, core: Core, adapter: ModelRef) -> float:
    """The largest difference of logits from peft's, relative to the logits' scale.

    Args:
        store: The evolution.
        place: Names the cache's size.
        basis: The basis.
        core: The expert.
        adapter: Its adapter.

    Raises:
        InvalidInputError: The difference is above 1e-4.
    """
    from cycleqd.evaluation.adapters_check import check

    from cycleqd.weights.span import low_rank

    cache = CheckpointCache(Settings.from_environment().cache, size_in_bytes(place.cache_size))
    with ExitStack() as held:

        def folder(model: str) -> Path:
            files = manifest(store, model)
            return held.enter_context(cache.fetch(source(store, layout.checkpoint(model), files), files))

        return check(folder("base"), folder(adapter.id), low_rank(basis, core))


def _adapters(store: Store, models: Sequence[ModelRef]) -> tuple[Checkpoint, list[Adapter]]:
    """The base's headers, and adapters opened in S3: what is read of them is verified against their records."""
    base = open_model(store, model_ref(store, "base"))
    sources = [source(store, layout.checkpoint(model.id), manifest(store, model.id)) for model in models]
    return base, [open_adapter(found, base) for found in sources]
