"""What an evolution costs: evaluations, seconds (from what was measured), pods, bytes. Known before it is run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cycleqd.errors import IntegrityError
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.storage.objects import Store

_PODS_A_TASK = 2  # KFP runs a driver pod for every task
_SAMPLED = 40  # records of each stage that are read


@dataclass(frozen=True)
class Estimate:
    """Totals of the whole evolution. `seconds` adds up all stages' time; None until a first one was measured.

    kept: bytes in S3 when every cell of every archive holds a model of its own; written: bytes of all checkpoints.
    """

    models: int
    evaluations: int
    seconds: float | None
    pods: int
    checkpoint: int
    written: int
    kept: int


def estimate(config: Config, checkpoint: int, seconds: Mapping[str, float]) -> Estimate:
    """What an evolution costs.

    Args:
        config: The evolution's configuration.
        checkpoint: Bytes of one.
        seconds: As `measured`.
    """
    experts, tasks, search = len(config.models.experts), len(config.tasks), len(config.search_tasks)
    children = planned_children(config)
    combined = len(config.combined)
    held_out = 1 + experts + combined + (config.method.final.makes == "aggregate")  # which is not the best elite
    evaluations = (1 + experts + children + combined) * search + held_out * tasks
    total = None
    if {"make", "evaluate"} <= set(seconds):
        total = children * seconds["make"] + evaluations * seconds["evaluate"]
    elites = min(sum(cells(config).values()), children)
    return Estimate(
        models=1 + experts + children,
        evaluations=evaluations,
        seconds=total,
        pods=_pods(config, children),
        checkpoint=checkpoint,
        written=(1 + experts + children + combined) * checkpoint,
        kept=(1 + experts + elites + combined) * checkpoint,
    )


def planned_children(config: Config) -> int:
    """Children of the whole search, stop rules on evaluations included.

    Args:
        config: The evolution's configuration.
    """
    method = config.method
    children = method.generations * algorithm(config).children
    return min(children, method.stop.evaluations or children)


def cells(config: Config) -> dict[str, int]:
    """Cells of each task's archive: the product of the bins on all other search tasks.

    Args:
        config: The evolution's configuration.
    """
    bins = config.method.grid.bins
    counts = {task: bins if isinstance(bins, int) else bins[task] for task in config.search_tasks}
    return {task: math.prod(n for other, n in counts.items() if other != task) for task in counts}


def _pods(config: Config, children: int) -> int:
    """Pods of the generations on a cluster: a generation is select, update, and for each child merge (mutate) and its
    evaluations; KFP adds a driver for each task, run, loop and child, and for each generation where a run has several.
    """
    place, search, generations = config.place, len(config.search_tasks), config.method.generations
    evaluations = {"task": search, "child": 1, "generation": 0}[place.group]
    a_child = (1 if place.fused else 2) + evaluations
    a_generation = 2 + (1 if place.group == "generation" else 0)
    tasks = generations * a_generation + children * a_child
    runs = math.ceil(generations / place.generations_per_run)
    nested = generations if place.generations_per_run > 1 else 0
    return _PODS_A_TASK * tasks + runs + nested + generations + children


def measured(store: Store) -> dict[str, float]:
    """Median seconds to make a child (merge, and mutate where that is apart) and to evaluate a model on a task of the
    search, from the newest children's run records; "make" and "evaluate" are absent where nothing was measured.

    Args:
        store: The evolution.
    """
    keys = [*sorted(store.list("models")), *sorted(store.list("generations"))]  # children are newer than experts
    parts = {
        "merge": [key for key in keys if key.endswith("/merge/run.json")],
        "mutate": [key for key in keys if key.endswith("/mutate/run.json")],
        "evaluate": [key for key in keys if "/evaluations/" in key and key.endswith("/search/run.json")],
    }
    found = {stage: statistics.median(_seconds(store, names[-_SAMPLED:])) for stage, names in parts.items() if names}
    if "merge" in found:
        found["make"] = found.pop("merge") + found.pop("mutate", 0.0)
    return found


def _seconds(store: Store, keys: Iterable[str]) -> list[float]:
    runs = [store.find_json(key) for key in keys]
    if not any(runs):
        raise IntegrityError(f"run records of {store.url('')} vanished while they were read; try again")
    return [(run["finished"] - run["started"]) / 1000 for run in runs if run]
