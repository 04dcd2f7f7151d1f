"""A model's scores over all search tasks, as columns that models of any evolution share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result


@dataclass(frozen=True)
class Summary:
    """Scores in [0, 1] with standard errors. `worst_task`: of equal ones the configuration's first.

    `time`: milliseconds since the epoch, of the record that was begun last.
    """

    average: float
    average_stderr: float
    worst: float
    worst_stderr: float
    worst_task: str
    time: int

    def metrics(self, split: str) -> dict[str, float]:
        """The columns, by name.

        Args:
            split: "search" or "test".
        """
        return {
            f"{split}_average": self.average,
            f"{split}_average_stderr": self.average_stderr,
            f"{split}_worst": self.worst,
            f"{split}_worst_stderr": self.worst_stderr,
        }


def summary(store: Store, config: Config, model: str, split: str) -> Summary | None:
    """Average and worst task of a model; None while a search task has no score of its present checkpoint.

    The tasks' samples are drawn apart, so the average's variance is the sum of theirs over K².

    Args:
        store: Objects of the evolution.
        config: Its search tasks.
        model: Model id.
        split: "search" or "test".
    """
    folders = {task: layout.evaluation(model, task, split) for task in config.search_tasks}
    bodies = {task: read_result(store, folder) for task, folder in folders.items()}
    scored = {task: body for task, body in bodies.items() if body is not None}
    if len(scored) < len(folders) or len({body["inputs"]["model"] for body in scored.values()}) > 1:
        return None
    scores = {task: body["outputs"]["score"] for task, body in scored.items()}
    errors = {task: body["outputs"]["standard_error"] for task, body in scored.items()}
    worst = min(scores, key=lambda task: scores[task])
    return Summary(
        average=fmean(scores.values()),
        average_stderr=math.hypot(*errors.values()) / len(errors),
        worst=scores[worst],
        worst_stderr=errors[worst],
        worst_task=worst,
        time=max(store.get_json(layout.run(folder))["started"] for folder in folders.values()),
    )
