"""A view of MLflow's table of runs: models only, the best first, their scores in columns.

By itself the page shows the evolution's run alone, the others folded into it, and no score. It keeps views that people
share as tags of the experiment, JSON of what can be chosen on the page; this is one of them. (MLflow 3)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

NAME = "scores"
TAG = f"mlflow.sharedViewState.{NAME}"
"""The experiment's tag that holds the view."""


def view(tasks: Sequence[str]) -> str:
    """The view, as the tag holds it.

    Args:
        tasks: The search tasks, in the configuration's order.
    """
    shown = ["search_average", "search_average_stderr", "search_worst", *(f"search_score/{task}" for task in tasks)]
    shown += ["test_average", "test_average_stderr", "test_worst"]
    chosen = {
        "searchFilter": "metrics.search_average >= 0",
        "orderByKey": "metrics.`search_average`",
        "orderByAsc": False,
        "selectedColumns": [f"metrics.`{name}`" for name in shown],
    }
    return json.dumps(chosen)


def note(about: str, experiment: str) -> str:
    """The experiment's description, with a link to the view, in Markdown.

    Args:
        about: What the evolution is.
        experiment: Id of the experiment.
    """
    return f"[All models, best first](#/experiments/{experiment}/runs?viewStateShareKey={NAME}). {about}"
