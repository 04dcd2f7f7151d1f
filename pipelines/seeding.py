"""seeding: copy everything to S3, score base and experts, fix the grids, fill the archives. Makes snapshot 0.

For a search in the span, the experts' shared basis and their cores are made before anything is scored.
"""

import json
from collections.abc import Iterable

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.basis.component import basis
from components.evaluate.component import evaluate_models
from components.seed.component import seed
from components.update_archives.component import update_archives
from cycleqd.search.config import Config
from cycleqd.storage.finalising import seeded_models
from pipelines.placement import assign


def groups(config: Config, names: Iterable[str]) -> list[str]:
    """Tasks of the evolution as evaluate tasks do them: one each, or all together. JSON lists of names.

    Args:
        config: Its `place.group` decides.
        names: Names of tasks.
    """
    return [json.dumps([name]) for name in names] if config.place.group == "task" else [json.dumps(list(names))]


def seeding(config: Config) -> BaseComponent:
    """The seeding pipeline of a configuration. Parameters: evolution, config (JSON), place (JSON).

    Args:
        config: Tasks, experts and place of the evolution.
    """
    where, in_span = config.place, config.in_span
    models = [*seeded_models(config), *config.extracted]
    batches = [models] if in_span or where.group == "generation" else [[model] for model in models]
    parts = groups(config, config.search_tasks)

    @dsl.pipeline(name="cycleqd-seeding", description="Stage the inputs, score base and experts, fill the archives")
    def pipeline(evolution: str, config: str, place: str) -> None:
        first = assign(seed(config=config, place=place), "seed", where)
        if in_span:
            first = assign(basis(evolution=evolution, place=place), "basis", where).after(first)
        scores: list[dsl.PipelineTask] = []
        for batch in batches:
            for tasks in parts:
                score = evaluate_models(evolution=evolution, models=batch, tasks=tasks, split="search", place=place)
                scores.append(assign(score, "evaluate", where).after(first))
        last = update_archives(evolution=evolution, children=[], place=place)
        assign(last, "update_archives", where).after(*scores)

    return pipeline
