"""Scores of one model from its records, for tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result


@dataclass(frozen=True)
class ModelScores:
    """A model's digest and its scores by task, fractions."""

    digest: str
    values: Mapping[str, float]


def scores_of(store: Store, config: Config, model: str, split: str) -> ModelScores | None:
    """A model's scores on the search tasks; None unless all are recorded.

    Args:
        store: The evolution.
        config: Its search tasks are those that count.
        model: A model's id.
        split: search or test.
    """
    bodies = {task: read_result(store, layout.evaluation(model, task, split)) for task in config.search_tasks}
    if any(body is None for body in bodies.values()):
        return None
    found = {task: body for task, body in bodies.items() if body is not None}
    digest = next(iter(found.values()))["inputs"]["model"]
    return ModelScores(digest, {task: float(body["outputs"]["score"]) for task, body in found.items()})
