"""aggregate: θ_base + Σ β_k τ_k from HEAD's best elites (paper section 3.4), the final model, and what it is compared
with: the experts' naive merge, and task arithmetic with several λ.

Once these have been scored on the search split the best λ is chosen, and the final model, where it is either the
aggregate or the best single model. Free unless HEAD has moved and its best elites are others. What is read is named in
final/plan.json and so kept from cleaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.errors import ConflictError
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, ModelRef
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.cleaning import clean_cores
from cycleqd.storage.evolution import current, load_config, manifest_json, model_ref
from cycleqd.storage.failures import recorded
from cycleqd.storage.finalising import compared
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.results import Clock, once
from cycleqd.storage.scores import scored_models
from cycleqd.storage.settings import Settings
from cycleqd.storage.tuned import tune
from cycleqd.tracking import unlogged

METHOD_VERSION = 1
"""Raise when the bytes of an aggregated checkpoint may change."""

_ATTEMPTS = 5  # generations that may end while the elites are being claimed

Recipe = Sequence[tuple[ModelRef, float]]


def run(evolution: str, profile: str) -> None:
    """Build the combined models, all but a final one that is still to be chosen.

    Args:
        evolution: Name of the evolution.
        profile: Names the place in S3.

    Raises:
        ConflictError: the archives change faster than they can be read.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "aggregate"):
        config, where = load_config(store), load_place(store, profile)
        claimed, state = claim(store, config)
        recipes = {model: recipe(store, config, state, model) for model in config.combined if model != config.chosen}
        for model in recipes:
            build(store, config, where, model, recipes[model])
        give_up_leftovers(store, claimed)
        if config.chosen is None:
            clean_cores(store, config, claimed, where.pins)
        unlogged.catch_up(settings, store, config, [layout.stage(model, "make") for model in recipes])


def choose(evolution: str, profile: str) -> list[str]:
    """Choose the best λ by the search split, and the final model where there is a choice, which is then built; the ids
    of the models to score on held-out samples.

    Args:
        evolution: Name of the evolution.
        profile: Names the place in S3.

    Raises:
        ConflictError: the search has gone on since the aggregate was built.
        IntegrityError: what is chosen from has no scores.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "choose final"):
        config, where = load_config(store), load_place(store, profile)
        head, state = current(store)
        claimed = store.get_json(layout.FINAL_PLAN)
        if claimed["sha256"] != head.sha256:
            raise ConflictError(f"HEAD of {store.url('')} has moved since the aggregate was built; finalise again")
        tuned = tune(store, config)
        if config.chosen is None:
            chosen, own = states.final_recipe(config, state), []
        else:
            aggregated = scored_models(store, config, ["aggregated"])[0][0]
            chosen, own = states.final_recipe(config, state, aggregated.scores), [layout.stage("final", "make")]
            build(store, config, where, "final", chosen)
            clean_cores(store, config, claimed, where.pins)
        unlogged.catch_up(settings, store, config, own)
        return compared(config, state, [ref.id for ref, _ in chosen], tuned)


def claim(store: Store, config: Config) -> tuple[JSON, State]:
    """Write the claim that names the models to be read before any can be cleaned away; the claim and HEAD's state.

    Args:
        store: Objects of the evolution.
        config: Decides which models are read.

    Raises:
        ConflictError: HEAD keeps moving.
    """
    for _ in range(_ATTEMPTS):
        head, state = current(store)
        models = {ref.id for ref, _ in config.method.final.aggregate(state)}
        if config.chosen is None:
            models |= {ref.id for ref, _ in states.final_recipe(config, state)}
        else:
            models.add(states.best_living(state).model.id)
        claimed = {**head.to_json(), "models": sorted(models)}
        if store.find_json(layout.FINAL_PLAN) != claimed:
            store.put_json(layout.FINAL_PLAN, claimed)
        if current(store)[0] == head:
            return claimed, state
    raise ConflictError(f"HEAD of {store.url('')} keeps moving; stop the evolution before finalising it")


def recipe(store: Store, config: Config, state: State, model: str) -> Recipe:
    """Models and coefficients of a combined model.

    Args:
        store: Objects of the evolution.
        config: Decides how the models are combined.
        state: HEAD's state.
        model: "naive", "aggregated", "final", or the id of a λ.
    """
    if model == "naive" or model in config.lambdas:
        experts = [model_ref(store, f"expert-{name}") for name in config.models.experts]
        coefficient = config.lambdas.get(model, 1 / len(experts))
        return [(expert, coefficient) for expert in experts]
    return config.method.final.aggregate(state) if model == "aggregated" else states.final_recipe(config, state)


def build(store: Store, config: Config, place: Place, model: str, recipe: Recipe) -> None:
    """Write a linear combination of models, with its record.

    Args:
        store: Objects of the evolution.
        config: Its shard size.
        place: Threads, and the size of the cache.
        model: Id of the model that is written.
        recipe: Models and the coefficients of their task vectors.
    """
    base = model_ref(store, "base")
    inputs = {
        "base": base.to_json(),
        "models": [ref.to_json() for ref, _ in recipe],
        "coefficients": [beta for _, beta in recipe],
        "shard_size": config.models.shard_size,
    }

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import combine_cores, combine_dense

        if config.in_span:
            return combine_cores(store, config, place, model, base, recipe)
        return {"checkpoint": manifest_json(combine_dense(store, config, place, model, base, recipe, clock))}

    once(store, layout.stage(model, "make"), "aggregate", METHOD_VERSION, inputs, compute)


def give_up_leftovers(store: Store, claimed: JSON) -> None:
    """Abort the uploads that killed runs left of the combined models, which exist now.

    The listing comes first: a finalising that has an upload in it, and wants other models, has claimed them by now.

    Args:
        store: Objects of the evolution.
        claimed: The claim that this run wrote, as JSON.
    """
    uploads = [(key, upload) for key, upload in store.uploads() if _is_combined(key)]
    if store.get_json(layout.FINAL_PLAN) == claimed:
        for key, upload in uploads:
            store.abort_upload(key, upload)


def _is_combined(key: str) -> bool:
    """Whether a key is of a combined model."""
    home, _, rest = key.partition("/")
    return home == "models" and layout.is_combined(rest.partition("/")[0])
