"""generation: select parents, merge, mutate, evaluate, update archives."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate_child, evaluate_models
from components.merge.component import merge, merge_children
from components.mutate.component import mutate, mutate_children
from components.select_parents.component import select_parents
from components.update_archives.component import update_archives
from cycleqd.search.config import Config
from pipelines.placement import assign
from pipelines.seeding import groups


def generation(config: Config, count: int | None = None) -> BaseComponent:
    """The pipeline of several generations in a row.

    Parameters: evolution, generation (the first one's number; -1: the next after HEAD) and place (JSON). Several in a
    row are an outer pipeline whose tasks are the inner one: its definition grows by a task a generation.

    Args:
        config: Tasks and place of the evolution.
        count: How many generations; None: `place.generations_per_run`.
    """
    one = _one(config)
    count = config.place.generations_per_run if count is None else count
    if count == 1:
        return one

    @dsl.pipeline(name="cycleqd-generations", description=f"{count} generations, one after another")
    def pipeline(evolution: str, generation: int, place: str) -> None:
        previous = None
        for offset in range(count):
            task = one(evolution=evolution, generation=generation, place=place, offset=offset)
            task.set_caching_options(False)
            if previous is not None:
                task.after(previous)
            previous = task

    return pipeline


def _one(config: Config) -> BaseComponent:
    return _in_span(config) if config.in_span else _dense(config)


def _in_span(config: Config) -> BaseComponent:
    """Cores of all children are made in one task a step, and all children are evaluated in the same batches."""
    where = config.place
    parts = groups(config, config.search_tasks)

    @dsl.pipeline(name="cycleqd-generation", description="Select parents, merge, mutate, evaluate, update archives")
    def pipeline(evolution: str, generation: int, place: str, offset: int = 0) -> None:
        selection = select_parents(evolution=evolution, generation=generation, offset=offset, place=place)
        chosen = assign(selection, "select_parents", where).output
        merged = assign(merge_children(evolution=evolution, children=chosen, place=place), "merge", where)
        mutation = mutate_children(evolution=evolution, children=merged.output, place=place)
        children = assign(mutation, "mutate", where).output
        scores = [
            evaluate_models(evolution=evolution, models=children, tasks=tasks, split="search", place=place)
            for tasks in parts
        ]
        update = update_archives(evolution=evolution, children=children, place=place)
        assign(update, "update_archives", where).after(*(assign(score, "evaluate", where) for score in scores))

    return pipeline


def _dense(config: Config) -> BaseComponent:
    """Full checkpoints: a task a child for merging and, unless fused, for mutating."""
    where = config.place
    parts = groups(config, config.search_tasks)
    together = where.group == "generation"
    limit = None if where.runner == "kubeflow" else where.parallelism

    # Traps of KFP: inside the loop only the loop item and pipeline parameters are used (kfp.local puts the item in the
    # place of anything else); the evaluations are written out here instead of by a loop in the pipeline; and what comes
    # after a loop can wait for it only by collecting an output, so the tasks in it return their item. On a cluster the
    # loop has no limit: Argo counts the iterations that a retry sets to Running against it, and starts none when that
    # many had failed.
    @dsl.pipeline(name="cycleqd-generation", description="Select parents, merge, mutate, evaluate, update archives")
    def pipeline(evolution: str, generation: int, place: str, offset: int = 0) -> None:
        selection = select_parents(evolution=evolution, generation=generation, offset=offset, place=place)
        with dsl.ParallelFor(assign(selection, "select_parents", where).output, parallelism=limit) as item:
            last = made = assign(merge(evolution=evolution, item=item, place=place), "merge", where)
            if not where.fused:
                last = made = assign(mutate(evolution=evolution, item=item, place=place), "mutate", where).after(made)
            for tasks in [] if together else parts:
                last = evaluate_child(evolution=evolution, item=item, tasks=tasks, split="search", place=place)
                assign(last, "evaluate", where).after(made)
        update = update_archives(evolution=evolution, children=dsl.Collected(last.output), place=place)
        assign(update, "update_archives", where)
        if together:
            children = dsl.Collected(last.output)
            score = evaluate_models(evolution=evolution, models=children, tasks=parts[0], split="search", place=place)
            update.after(assign(score, "evaluate", where))

    return pipeline
