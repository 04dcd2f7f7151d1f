"""basis: the shared basis of the experts' low-rank task vectors, and each expert's core in it.

Experts that came as full checkpoints are turned into adapters first. Every core is compared with what peft computes
from the adapter itself before anything is built on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config, manifest, manifest_json, model_ref
from cycleqd.storage.failures import recorded
from cycleqd.storage.models import fetched
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.results import Clock, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from cycleqd.weights.lora import WEIGHTS

if TYPE_CHECKING:
    from cycleqd.weights.basis import Basis
    from cycleqd.weights.span import Core

METHOD_VERSION = 1
"""Raise when the tensors of a basis, a core or an extracted adapter may change."""


def run(evolution: str, profile: str) -> None:
    """Make what seeding's copies lack for a search in the span. Free for what has been made.

    Args:
        evolution: Name of the evolution.
        profile: Names the place in S3.

    Raises:
        InvalidInputError: An expert's weights are broken, or its core does not give what peft gives.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "basis"):
        from cycleqd.storage.cores import opened_basis

        config, where = load_config(store), load_place(store, profile)
        adapters = {name: make_adapter(store, config, where, name) for name in config.models.experts}
        make_basis(store, where, adapters)
        with opened_basis(store, where) as basis:
            for name, adapter in adapters.items():
                make_core(store, config, where, basis, name, adapter)
        made = [layout.BASIS, *(ref.id for ref in adapters.values()), *(f"expert-{name}" for name in adapters)]
        unlogged.catch_up(settings, store, config, [layout.stage(model, "make") for model in made])


def make_adapter(store: Store, config: Config, place: Place, name: str) -> ModelRef:
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
    model, rank, base = f"adapter-{name}", config.models.experts[name].rank, model_ref(store, "base")
    assert rank is not None, "a full checkpoint is refused without a rank"
    inputs = {"base": base.to_json(), "expert": came.to_json(), "rank": rank}

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import extract_adapter

        with clock.part("extract"):
            written, kept = extract_adapter(store, config, place, base, came, rank, model)
        return {"checkpoint": manifest_json(written), "kept": kept}

    once(store, layout.stage(model, "make"), "basis", METHOD_VERSION, inputs, compute)
    return model_ref(store, model)


def make_basis(store: Store, place: Place, adapters: Mapping[str, ModelRef]) -> None:
    """Write Q and P of every matrix that an adapter changes.

    Args:
        store: The evolution.
        place: Where to work.
        adapters: Of each expert its adapter, in the configuration's order.
    """
    base, models = model_ref(store, "base"), list(adapters.values())
    inputs = {"base": base.to_json(), "adapters": [ref.to_json() for ref in models]}

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import span_adapters

        with clock.part("basis"):
            return {"checkpoint": manifest_json(span_adapters(store, place, base, models))}

    once(store, layout.stage(layout.BASIS, "make"), "basis", METHOD_VERSION, inputs, compute)


def make_core(store: Store, config: Config, place: Place, basis: Basis, name: str, adapter: ModelRef) -> None:
    """Write an expert's core, after comparing what it gives with what peft gives.

    Args:
        store: The evolution.
        config: Its configuration.
        place: Where to work.
        basis: The basis.
        name: The expert's name.
        adapter: Its adapter.
    """
    base, shared = model_ref(store, "base"), model_ref(store, layout.BASIS)
    inputs = {"base": base.to_json(), "basis": shared.to_json(), "adapter": adapter.to_json()}
    if config.models.keep_dense:
        inputs["full"] = [model_ref(store, source).to_json() for source in config.extracted]

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.cores import save_core
        from cycleqd.storage.making import expert_core, with_dense

        with clock.part("project"):
            core = expert_core(store, place, basis, base, shared, adapter)
        with clock.part("compare with peft"):
            clock.facts["difference_from_peft"] = difference(store, place, basis, core, adapter)
        whole = with_dense(store, config, core, name)
        return {"checkpoint": manifest_json(save_core(store, whole))}

    once(store, layout.stage(f"expert-{name}", "make"), "basis", METHOD_VERSION, inputs, compute)


def difference(store: Store, place: Place, basis: Basis, core: Core, adapter: ModelRef) -> float:
    """The largest difference of a core's logits from peft's on a few prompts, relative to the logits' scale.

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

    with fetched(store, place, "base") as base, fetched(store, place, adapter.id) as folder:
        return check(base, folder, low_rank(basis, core))
