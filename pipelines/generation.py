"""generation: select parents, merge, mutate, evaluate, update archives."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate_child, evaluate_models
from components.merge.component import merge, merge_and_mutate
from components.mutate.component import mutate
from components.select_parents.component import select_parents
from components.update_archives.component import update_archives
from cycleqd.search.config import Config
from pipelines.placement import assign
from pipelines.seeding import evaluating, groups

LOOP = "each child"


def generation(config: Config, count: int | None = None) -> BaseComponent:
    """The pipeline of several generations in a row.

    Parameters: evolution, generation (the first one's number; -1: the next after HEAD) and profile. Several in a row
    are an outer pipeline whose tasks are the inner one: its definition grows by a task a generation.

    Args:
        config: Tasks and place of the evolution.
        count: How many generations; None: `place.generations_per_run`.
    """
    one = _single(config)
    count = config.place.generations_per_run if count is None else count
    if count == 1:
        return one

    @dsl.pipeline(
        name="cycleqd-generations",
        display_name=f"{config.name}: {count} generations",
        description=f"{count} generations of {config.name}, one after another, each {_steps(config)}.",
    )
    def pipeline(evolution: str, generation: int, profile: str) -> None:
        """See the description.

        Args:
            evolution: Name of the evolution.
            generation: The first generation's number; -1: the next after HEAD.
            profile: The profile that this runs under, by name and sha256.
        """
        previous = None
        for offset in range(count):
            task = one(evolution=evolution, generation=generation, profile=profile, offset=offset)
            task.set_caching_options(False).set_display_name(f"generation {offset + 1:0{len(str(count))}d} of {count}")
            if previous is not None:
                task.after(previous)
            previous = task

    return pipeline


def _steps(config: Config) -> str:
    """What a generation does, for descriptions."""
    making = f"merge and mutate ({LOOP})" if config.fused else "merge, mutate"
    return f"select parents, {making}, evaluate on {', '.join(config.search_tasks)}, update archives"


# Traps of KFP: inside a loop only the loop item and pipeline parameters are used (kfp.local puts the item in the place
# of anything else); the evaluations are written out here instead of by a loop in the pipeline; and what comes after a
# loop can wait for it only by collecting an output, so the tasks in it return their item. On a cluster a loop has no
# limit: Argo counts the iterations that a retry sets to Running against it, and starts none when that many had failed.


def _single(config: Config) -> BaseComponent:
    """One generation."""
    where, of_children = config.place, _large_children if config.fused else _small_children

    @dsl.pipeline(
        name="cycleqd-generation",
        display_name=f"{config.name}: generation",
        description=f"A generation of {config.name}: {_steps(config)}.",
    )
    def pipeline(evolution: str, generation: int, profile: str, offset: int = 0) -> None:
        """See the description.

        Args:
            evolution: Name of the evolution.
            generation: The generation's number; -1: the next after HEAD.
            profile: The profile that this runs under, by name and sha256.
            offset: What is added to the number, where several generations are one run.
        """
        selection = select_parents(evolution=evolution, generation=generation, offset=offset)
        selected = assign(selection, "select_parents", where).output
        of_children(config, evolution, profile, selected)

    return pipeline


def _small_children(config: Config, evolution: Any, profile: Any, selected: Any) -> None:
    """All children are made by one task a step; where each is evaluated by a task of its own, that is a loop."""
    where, parts, apart = config.place, groups(config, config.search_tasks), config.evaluated_apart
    merging = assign(merge(evolution=evolution, children=selected, profile=profile), "merge", where)
    mutation = mutate(evolution=evolution, children=merging.outputs["Output"], profile=profile)
    children = assign(mutation, "mutate", where).outputs["Output"]
    scores = []
    if apart:
        with dsl.ParallelFor(children, name=LOOP, parallelism=_limit(config)) as item:
            score = evaluate_child(evolution=evolution, item=item, tasks=parts[0], split="search", profile=profile)
            assign(score, "evaluate", where, evaluating(parts[0]))
        children = dsl.Collected(score.outputs["Output"])
    for tasks in [] if apart else parts:
        score = evaluate_models(evolution=evolution, models=children, tasks=tasks, split="search", profile=profile)
        scores.append(assign(score, "evaluate", where, evaluating(tasks)))
    update = update_archives(evolution=evolution, children=children, profile=profile)
    assign(update, "update_archives", where).after(*scores)


def _large_children(config: Config, evolution: Any, profile: Any, selected: Any) -> None:
    """Each child is merged and mutated by a task of its own, without an intermediate that is written and read again."""
    where, parts, together = config.place, groups(config, config.search_tasks), not config.evaluated_apart
    with dsl.ParallelFor(selected, name=LOOP, parallelism=_limit(config)) as item:
        making = merge_and_mutate(evolution=evolution, item=item, profile=profile)
        last = assign(making, "merge_and_mutate", where)
        for tasks in [] if together else parts:
            last = evaluate_child(evolution=evolution, item=item, tasks=tasks, split="search", profile=profile)
            assign(last, "evaluate", where, evaluating(tasks)).after(making)
    children = dsl.Collected(last.outputs["Output"])
    update = update_archives(evolution=evolution, children=children, profile=profile)
    assign(update, "update_archives", where)
    if together:
        tasks = parts[0]
        score = evaluate_models(evolution=evolution, models=children, tasks=tasks, split="search", profile=profile)
        update.after(assign(score, "evaluate", where, evaluating(tasks)))


def _limit(config: Config) -> int | None:
    return None if config.place.runner == "kubeflow" else config.place.parallelism
