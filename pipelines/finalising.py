"""finalising: aggregate the archives, choose the final model, score it and its rivals on every task and both splits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.aggregate.component import aggregate, choose_final
from components.evaluate.component import evaluate_models
from components.update_archives.stage import seeded_models
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from pipelines.placement import assign
from pipelines.seeding import groups


def finalising(config: Config) -> BaseComponent:
    """The finalising pipeline. Parameters: evolution, place (JSON), models (ids to score; default: all but an elite).

    The search split comes first, where most results exist already, and decides which λ of task arithmetic is the
    baseline, and where the final model is the better of two, which. Then the held-out split of all tasks (report_only
    ones too) is scored.

    Args:
        config: Tasks, experts and place of the evolution.
    """
    where = config.place
    compared = [
        *seeded_models(config),
        *config.extracted,
        *(model for model in config.combined if model != config.chosen),
    ]
    searched = [("search", tasks) for tasks in groups(config, config.search_tasks)]
    held_out = [("test", tasks) for tasks in groups(config, config.tasks)]

    @dsl.pipeline(name="cycleqd-finalising", description="Build the final model, score it against its rivals")
    def pipeline(evolution: str, place: str, models: list[str] = compared) -> None:
        built = assign(aggregate(evolution=evolution, place=place), "aggregate", where)
        scored = partial(_score, where, evolution, place)
        rivals = scored(models, searched, built)
        choice = choose_final(evolution=evolution, place=place)
        final = assign(choice, "choose_final", where).after(*rivals)
        scored(final.output, held_out if config.chosen is None else [*searched, *held_out], final)

    return pipeline


def _score(
    where: Place,
    evolution: Any,
    place: Any,
    models: Any,
    parts: Sequence[tuple[str, str]],
    after: dsl.PipelineTask,
) -> list[dsl.PipelineTask]:
    """Score models on (split, JSON list of tasks) after a task."""
    scores: list[dsl.PipelineTask] = []
    for split, tasks in parts:
        score = evaluate_models(evolution=evolution, models=models, tasks=tasks, split=split, place=place)
        scores.append(assign(score, "evaluate", where).after(after))
    return scores
