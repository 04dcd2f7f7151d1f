"""evaluate: score models on tasks, in one process with one engine, and log the scores.

What has a record is not evaluated again; when nothing is left, no engine is started.
"""

from __future__ import annotations

import json
from typing import cast

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.scoring import evaluate_all
from cycleqd.evaluation.secrets import withheld
from cycleqd.evaluation.staged import Split
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged


def run(evolution: str, models: str, tasks: str, split: str, profile: str) -> None:
    """Score models on tasks. Costs nothing for pairs that have a score.

    All checks come before a model is loaded. A checkpoint that is not what its record says is never scored.

    Args:
        evolution: Name of the evolution.
        models: JSON list of model ids.
        tasks: JSON list of names of tasks.
        split: "search" or "test".
        profile: Names the place in S3.

    Raises:
        InvalidInputError: names are unknown, or a task misses something on this machine.
        IntegrityError: task data are not what was seeded.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "evaluate", models, tasks, split):
        if split not in ("search", "test"):
            raise InvalidInputError(f"split is '{split}'; it is search or test")
        config, where = load_config(store), load_place(store, profile)
        names, chosen = json.loads(models), json.loads(tasks)
        unknown = sorted(set(chosen) - set(config.tasks))
        if unknown:
            raise InvalidInputError(f"evolution '{evolution}' has no tasks {unknown}; it has {list(config.tasks)}")
        with withheld():
            evaluate_all(settings, store, config, where, names, chosen, cast(Split, split))
        scored = [layout.evaluation(model, task, split) for model in names for task in chosen]
        unlogged.catch_up(settings, store, config, scored)
