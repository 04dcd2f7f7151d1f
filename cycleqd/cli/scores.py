"""Scores of one model from its records, for tables."""

from __future__ import annotations

from cycleqd.search.config import Config
from cycleqd.search.records import ModelRef, Scored
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result


def scores_of(store: Store, config: Config, model: str, split: str) -> Scored | None:
    """A model's scores on the search tasks; None unless all are recorded.

    Args:
        store: The evolution.
        config: Its search tasks are those that count.
        model: A model's id.
        split: search or test.
    """
    scores: dict[str, float] = {}
    for task in config.search_tasks:
        body = read_result(store, layout.evaluation(model, task, split))
        if body is None:
            return None
        scores[task], digest = float(body["outputs"]["score"]), body["inputs"]["model"]
    return Scored(ModelRef(model, digest), scores)
