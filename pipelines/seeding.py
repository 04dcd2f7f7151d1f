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


def evaluating(tasks: str, note: str = "") -> str:
    """The name of an evaluate task: "evaluate code, db, os".

    Args:
        tasks: JSON list of names of tasks.
        note: What else distinguishes it.
    """
    return f"evaluate {', '.join(json.loads(tasks))}{f' ({note})' if note else ''}"


def seeding(config: Config) -> BaseComponent:
    """The seeding pipeline of a configuration. Parameters: evolution, config, profile.

    Args:
        config: Tasks, experts and place of the evolution.
    """
    where, in_span = config.place, config.in_span
    models = [*seeded_models(config), *config.extracted]
    batches = [[model] for model in models] if config.evaluated_apart else [models]
    parts = groups(config, config.search_tasks)

    @dsl.pipeline(
        name="cycleqd-seeding",
        display_name=f"{config.name}: seeding",
        description=f"The beginning of {config.name}: copy base, experts and task data to S3, evaluate the models on"
        f" {', '.join(config.search_tasks)}, fill the archives.",
    )
    def pipeline(evolution: str, config: str, profile: str) -> None:
        """See the description.

        Args:
            evolution: Name of the evolution.
            config: The configuration, by name and sha256.
            profile: The profile that this runs under, by name and sha256.
        """
        first = assign(seed(evolution=evolution, config=config, profile=profile), "seed", where)
        if in_span:
            first = assign(basis(evolution=evolution, profile=profile), "basis", where).after(first)
        scores: list[dsl.PipelineTask] = []
        for batch in batches:
            for tasks in parts:
                score = evaluate_models(evolution=evolution, models=batch, tasks=tasks, split="search", profile=profile)
                named = evaluating(tasks, "" if len(batches) == 1 else batch[0])
                scores.append(assign(score, "evaluate", where, named).after(first))
        last = update_archives(evolution=evolution, children=[], profile=profile)
        assign(last, "update_archives", where).after(*scores)

    return pipeline
