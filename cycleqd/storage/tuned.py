"""Task arithmetic with its λ chosen on the search split: the baseline that a search has to beat."""

from __future__ import annotations

from cycleqd.search.config import Config
from cycleqd.search.records import JSON, average
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, once, read_result
from cycleqd.storage.scores import scored_models

METHOD_VERSION = 1
"""Raise when another λ may be chosen for the same scores."""


def tune(store: Store, config: Config) -> str | None:
    """The model whose λ has the best average on the search split, recorded; None where the baseline is off.

    Of equal ones the first in the configuration's order.

    Args:
        store: Objects of the evolution.
        config: Its values of λ.

    Raises:
        IntegrityError: one has no scores.
        ConflictError: they were not scored under the base's conditions.
    """
    if not config.lambdas:
        return None
    scored, evaluations = scored_models(store, config, list(config.lambdas))

    def compute(clock: Clock) -> JSON:
        averages = {model.model.id: average(model.scores) for model in scored}
        best = max(averages, key=lambda model: averages[model])
        return {"model": best, "lambda": config.lambdas[best], "averages": averages}

    inputs = {"evaluations": evaluations}
    chosen: str = once(store, layout.TUNED, "choose_final", METHOD_VERSION, inputs, compute)["model"]
    return chosen


def find_tuned(store: Store) -> str | None:
    """The model that `tune` chose last; None before finalising, or where the baseline is off.

    Args:
        store: Objects of the evolution.
    """
    body = read_result(store, layout.TUNED)
    return None if body is None else str(body["outputs"]["model"])
