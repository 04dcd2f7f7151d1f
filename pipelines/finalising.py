"""finalising: aggregate the archives into the final model; score it and its rivals on every task and both splits."""

import json

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.aggregate.component import aggregate
from components.evaluate.component import evaluate_models
from components.update_archives.stage import seeded_models
from cycleqd.config import Config
from pipelines.placement import assign


def finalising(config: Config) -> BaseComponent:
    """The finalising pipeline. Parameters: evolution, place (JSON), models (ids to score; default: all but an elite).

    The models are scored on the held-out split of all tasks (report_only ones too) and on the search split of the
    search tasks, where most results stand already.
    """
    where = config.place
    compared = [*seeded_models(config), *config.combined]
    names = {"search": list(config.search_tasks), "test": list(config.tasks)}
    if where.group == "task":
        parts = [(split, json.dumps([task])) for split, tasks in names.items() for task in tasks]
    else:
        parts = [(split, json.dumps(tasks)) for split, tasks in names.items()]

    @dsl.pipeline(name="cycleqd-finalising", description="Build the final model, score it against its rivals")
    def pipeline(evolution: str, place: str, models: list = compared) -> None:
        built = assign(aggregate(evolution=evolution, place=place), "aggregate", where)
        for split, tasks in parts:
            score = evaluate_models(evolution=evolution, models=models, tasks=tasks, split=split, place=place)
            assign(score, "evaluate", where).after(built)

    return pipeline
