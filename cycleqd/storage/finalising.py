"""Which models finalising scores, and whether it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result
from cycleqd.storage.tuned import find_tuned


def seeded_models(config: Config) -> list[str]:
    """The base, then the experts, in the config's order.

    Args:
        config: Its experts.
    """
    return ["base", *(f"expert-{name}" for name in config.models.experts)]


def compared(config: Config, state: State, parts: Sequence[str] | None, tuned: str | None = None) -> list[str]:
    """Ids of the models that finalising scores: base, experts, what it builds, and the best living model.

    Before the choice all values of λ are among them, and the final model only where it is not chosen; afterwards, of
    the two that a final model is chosen from, only the other one is scored beside it, and only the best λ.

    Args:
        config: Decides which models are built, and how the final one is chosen.
        state: HEAD's state.
        parts: Ids of the models that the final one is made of; None before the choice.
        tuned: Id of the model with the best λ; None before the choice, or where there is none.
    """
    left_out = {config.chosen} if parts is None else config.lambdas.keys() - {tuned}
    combined = [model for model in config.combined if model not in left_out]
    makes = config.method.final.makes
    single = makes == "single" or (makes == "either" and parts is not None and len(parts) == 1)
    if makes == "either" and parts is not None and not single:
        combined.remove("aggregated")
    best = [] if single else [states.best_living(state).model.id]
    return list(dict.fromkeys([*seeded_models(config), *config.extracted, *best, *combined]))


def scored_models(config: Config, store: Store, state: State) -> list[str] | None:
    """Ids of the models that finalising scores on the held-out split; None before the final one and the best λ are
    chosen.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        state: The current snapshot.
    """
    claimed, tuned = store.find_json(layout.FINAL_PLAN), find_tuned(store)
    made = read_result(store, layout.stage("final", "make"))
    if claimed is None or claimed["sha256"] != state.digest or made is None or (config.lambdas and tuned is None):
        return None
    return compared(config, state, [part["id"] for part in made["inputs"]["models"]], tuned)


def finalised(config: Config, store: Store, state: State) -> bool:
    """Whether the final model was built from this snapshot, and every score that finalising makes is recorded.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        state: The current snapshot.
    """
    models = scored_models(config, store, state)
    return models is not None and all(store.exists(layout.result(folder)) for folder in _wanted(config, models))


def _wanted(config: Config, models: Sequence[str]) -> Iterator[str]:
    """The folders of the evaluations that finalising makes of these models, or finds made."""
    for model in models:
        for task in config.tasks:
            yield layout.evaluation(model, task, "test")
            if task in config.search_tasks:
                yield layout.evaluation(model, task, "search")
