"""aggregate: θ_base + Σ β_k τ_k from HEAD's best elites (paper section 3.4), the final model, and the naive merge.

Free unless HEAD has moved and its best elites are others. What it reads is named in final/plan.json and so kept from
cleaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.shared import layout, logbook
from components.shared.evolution import current, load_config, manifest_json, model_ref, parse_place, size_in_bytes
from components.shared.failures import recorded
from components.shared.models import opened, sink
from components.shared.progress import counting
from components.shared.settings import Settings
from components.shared.stage import Clock, once
from components.shared.store.objects import Store
from cycleqd import state as states
from cycleqd.config import Config, Place
from cycleqd.errors import ConflictError
from cycleqd.records import JSON, ModelRef

METHOD_VERSION = 1
"""Raise when the bytes of an aggregated checkpoint may change."""

_ATTEMPTS = 5  # generations that may end while the elites are being claimed

Recipe = Sequence[tuple[ModelRef, float]]


def run(evolution: str, place: str) -> None:
    """Build the combined models. Raises ConflictError when the archives change faster than they can be read."""
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "aggregate"):
        config = load_config(store)
        claimed, recipes = claim(store, config)
        experts = [model_ref(store, f"expert-{name}") for name in config.models.experts]
        recipes["naive"] = [(expert, 1 / len(experts)) for expert in experts]
        for model in config.combined:
            build(store, config, where, model, recipes[model])
        give_up_leftovers(store, claimed)
        logbook.log_final(settings, store, config)


def claim(store: Store, config: Config) -> tuple[JSON, dict[str, Recipe]]:
    """The recipes at HEAD by model id, after the claim that names their models before any can be cleaned away."""
    for _ in range(_ATTEMPTS):
        head, state = current(store)
        recipes: dict[str, Recipe] = {"final": states.final_recipe(config, state)}
        if "aggregated" in config.combined:
            recipes["aggregated"] = states.aggregate_recipe(config, state)
        models = {ref.id for recipe in recipes.values() for ref, _ in recipe}
        claimed = {"snapshot": head.snapshot, "sha256": head.sha256, "models": sorted(models)}
        if store.find_json(layout.FINAL_PLAN) != claimed:
            store.put_json(layout.FINAL_PLAN, claimed)
        if current(store)[0] == head:
            return claimed, recipes
    raise ConflictError(f"HEAD of {store.url('')} keeps moving; stop the evolution before finalising it")


def build(store: Store, config: Config, place: Place, model: str, recipe: Recipe) -> None:
    """Write a linear combination of models as `model`, with its record."""
    base = model_ref(store, "base")
    inputs = {
        "base": base.to_json(),
        "models": [ref.to_json() for ref, _ in recipe],
        "coefficients": [beta for _, beta in recipe],
        "shard_size": config.models.shard_size,
    }

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.aggregate import combine

        models = [base, *(ref for ref, _ in recipe)]
        with clock.part("combine"), opened(store, place, models) as (theta, *experts):
            written = combine(
                theta,
                experts,
                [beta for _, beta in recipe],
                sink(store, layout.checkpoint(model)),
                threads=place.threads,
                shard_size=size_in_bytes(config.models.shard_size),
                progress=counting(model, "bytes combined", theta.nbytes),
            )
        return {"checkpoint": manifest_json(written)}

    once(store, layout.stage(model, "make"), "aggregate", METHOD_VERSION, inputs, compute)


def give_up_leftovers(store: Store, claimed: JSON) -> None:
    """Abort the uploads that killed runs left of the combined models, which stand now.

    The listing comes first: a finalising that has an upload in it, and wants other models, has claimed them by now.
    """
    folders = tuple(f"{layout.home(model)}/" for model in layout.COMBINED)
    uploads = [(key, upload) for key, upload in store.uploads() if key.startswith(folders)]
    if store.get_json(layout.FINAL_PLAN) == claimed:
        for key, upload in uploads:
            store.abort_upload(key, upload)
