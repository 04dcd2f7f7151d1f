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

_WIDTH = 170  # pixels: the longest name fits


def view(tasks: Sequence[str]) -> str:
    """The view, as the tag holds it.

    Args:
        tasks: The search tasks, in the configuration's order.
    """
    splits = ("search", "test")
    shown = [f"{split}_{name}" for split in splits for name in ("average", "average_stderr")]
    shown += [f"{split}_{name}" for name in ("worst", *(f"score/{task}" for task in tasks)) for split in splits]
    columns = {f"metrics.`{name}`": _WIDTH for name in shown}
    chosen = {
        "searchFilter": "metrics.search_average >= 0",
        "orderByKey": "metrics.`search_average`",
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": columns,
    }
    return json.dumps(chosen)


def note(about: str, experiment: str) -> str:
    """The experiment's description, with a link to the view, in Markdown.

    Args:
        about: What the evolution is.
        experiment: Id of the experiment.
    """
    return f"[All models, best first](#/experiments/{experiment}/runs?viewStateShareKey={NAME}). {about}"
