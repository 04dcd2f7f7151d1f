"""finalising: aggregate the archives, choose the final model, score it and its rivals on every task and both splits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.aggregate.component import aggregate, choose_final
from components.evaluate.component import evaluate_models
from components.report.component import report
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.storage.finalising import seeded_models
from pipelines.placement import assign
from pipelines.seeding import evaluating, groups

SPLITS = {"search": "search split", "test": "held out"}


def finalising(config: Config) -> BaseComponent:
    """The finalising pipeline. Parameters: evolution, profile, models (ids to score; default: all but an elite).

    The search split comes first, where most results exist already, and decides which λ of task arithmetic is the
    baseline, and where the final model is the better of two, which. Then the held-out split of all tasks (report_only
    ones too) is scored. On Kubeflow the report is shown at the end; elsewhere `cycleqd report` writes it.

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

    @dsl.pipeline(
        name="cycleqd-finalising",
        display_name=f"{config.name}: finalising",
        description=f"The end of {config.name}: build the final model from the archives, and evaluate it and its rivals"
        f" on {', '.join(config.tasks)}.",
    )
    def pipeline(evolution: str, profile: str, models: list[str] = compared) -> None:
        """See the description.

        Args:
            evolution: Name of the evolution.
            profile: The profile that this runs under, by name and sha256.
            models: Ids of the models to score on the search split.
        """
        built = assign(aggregate(evolution=evolution, profile=profile), "aggregate", where)
        scored = partial(_score, where, evolution, profile)
        rivals = scored(models, searched, built, "rivals, ")
        choice = choose_final(evolution=evolution, profile=profile)
        final = assign(choice, "choose_final", where).after(*rivals)
        splits = held_out if config.chosen is None else [*searched, *held_out]
        scores = scored(final.outputs["Output"], splits, final)
        if where.runner == "kubeflow":
            assign(report(evolution=evolution), "report", where).after(*scores)

    return pipeline


def _score(
    where: Place,
    evolution: Any,
    profile: Any,
    models: Any,
    parts: Sequence[tuple[str, str]],
    after: dsl.PipelineTask,
    note: str = "",
) -> list[dsl.PipelineTask]:
    """Score models on (split, JSON list of tasks) after a task."""
    scores: list[dsl.PipelineTask] = []
    for split, tasks in parts:
        score = evaluate_models(evolution=evolution, models=models, tasks=tasks, split=split, profile=profile)
        scores.append(assign(score, "evaluate", where, evaluating(tasks, note + SPLITS[split])).after(after))
    return scores
