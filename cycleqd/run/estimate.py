"""What an evolution costs: evaluations, engine starts, hours, pods, bytes. Known before it is run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cycleqd.errors import IntegrityError
from cycleqd.evaluation.engines.vllm import SLOTS
from cycleqd.run.replies import Generated, Replies, replies
from cycleqd.run.sizes import Sizes
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.storage.objects import Store

_PODS_A_TASK = 2  # KFP runs a driver pod for every task
_SAMPLED = 40  # records of each stage that are read

SERVER_RATE = 180e6
"""Bytes of an adapter that one thread of a server makes of a core in a CPU second, in bfloat16; measured, see
docs/engines.md."""


@dataclass(frozen=True)
class ServerCost:
    """What a server does for the adapters of an evolution, before and while they generate.

    Attributes:
        adapters: That it makes, at most: each model of the span once for the search, and once for held-out samples.
        seconds: CPU seconds of one thread for one of them, at `SERVER_RATE`.
        folder: Bytes of one on the server's disk.
        slots: Adapters that share a batch.
        slot: Bytes of the GPU's memory for one of them, set aside when the server starts.
        basis: Bytes that it reads once, beside the base.
    """

    adapters: int
    seconds: float
    folder: int
    slots: int
    slot: int
    basis: int


@dataclass(frozen=True)
class Estimate:
    """Totals of the whole evolution.

    Attributes:
        models: That are scored: base, experts (also as they came, where adapters are extracted) and children.
        evaluations: Of a model on a task and a split.
        baseline: Those of them that tune λ of task arithmetic, for comparison.
        engine_starts: At most; none where all has a score. With a server its own is the only one.
        seconds: All stages' time added up; None until a first one was measured.
        replies: Tokens and hours of generating; None where the samples are not known.
        pods: On a cluster.
        given: Bytes of base and experts.
        largest: Of the largest of them.
        child: Bytes of one child's checkpoint or core.
        adapter: Bytes that an engine loads of a child in the span; else 0.
        swapped: Bytes of the full checkpoint that it loads in place of an adapter where `models.keep_dense`; else 0.
        swaps: How often one of these is made and loaded, at most.
        written: Bytes of checkpoints, cores and what seeding makes, written to S3 beside base and experts.
        kept: The same in S3 when every cell of every archive holds a model of its own.
        served: What a server does; None without one.
    """

    models: int
    evaluations: int
    baseline: int
    engine_starts: int
    seconds: float | None
    replies: Replies | None
    pods: int
    given: int
    largest: int
    child: int
    adapter: int
    swapped: int
    swaps: int
    written: int
    kept: int
    served: ServerCost | None = None


def estimate(
    config: Config,
    stored: Sizes,
    seconds: Mapping[str, float],
    samples: Mapping[str, Mapping[str, int]],
    generated: Mapping[str, Generated],
) -> Estimate:
    """From the configuration and what is known of its models, its samples and its records.

    Args:
        config: The configuration, `models.weights` decided.
        stored: Bytes of its models.
        seconds: As `measured`.
        samples: Of each task the number of samples by split; a task may lack them.
        generated: As `cycleqd.run.replies.generated`.
    """
    experts, tasks, search = len(config.models.experts), len(config.tasks), len(config.search_tasks)
    children, combined, full = planned_children(config), len(config.combined), len(config.extracted)
    searched = 1 + experts + full + children + combined
    tried = len(config.lambdas)
    compared = combined - max(tried - 1, 0)  # of all λ the best one
    held_out = 1 + experts + full + compared + (config.method.final.makes == "aggregate")  # which is not the best elite
    evaluations = searched * search + held_out * tasks
    total = None
    if {"make", "evaluate"} <= set(seconds):
        total = children * seconds["make"] + evaluations * seconds["evaluate"]
    elites = min(sum(cells(config).values()), children)
    seeded = stored.seeded + (experts * stored.child if config.in_span else 0)
    steps = 1 if config.fused else 2  # the intermediate is written, too
    final = stored.swapped  # beside its core, of which no adapter is the same
    cores = (searched - 1 - full) * _groups(config, search) + (held_out - 1 - full) * _groups(config, tasks)
    return Estimate(
        models=1 + experts + full + children,
        evaluations=evaluations,
        baseline=tried * search + (tasks if tried else 0),
        engine_starts=_engine_starts(config, children),
        seconds=total,
        replies=replies(config, samples, searched, held_out, generated),
        pods=_pods(config, children),
        given=stored.given,
        largest=stored.largest,
        child=stored.child,
        adapter=stored.adapter,
        swapped=stored.swapped,
        swaps=cores if stored.swapped else 0,
        written=seeded + (steps * children + combined) * stored.child + final,
        kept=seeded + (elites + combined) * stored.child + final,
        served=_served(config, stored, searched + held_out - 2),  # of which the base is none
    )


def _served(config: Config, stored: Sizes, adapters: int) -> ServerCost | None:
    if config.evaluation.engine != "server" or not stored.adapter:
        return None
    seconds = stored.adapter / SERVER_RATE
    return ServerCost(adapters, seconds, stored.adapter, server_slots(config), stored.slot, stored.seeded)


def server_slots(config: Config) -> int:
    """Adapters that a server has room for in a batch; more wait for their turn.

    Args:
        config: The evolution that it is started for.
    """
    return min(SLOTS, max(config.method.children, len(config.models.experts)))


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


def _groups(config: Config, tasks: int) -> int:
    """Tasks of the pipeline that evaluate models on so many tasks."""
    return tasks if config.place.group == "task" else 1


def _engine_starts(config: Config, children: int) -> int:
    """Tasks of all pipelines that evaluate: each starts an engine once, unless one server does it for all."""
    if config.evaluation.engine == "server":
        return 1
    together = not config.evaluated_apart
    search, everything = (_groups(config, len(names)) for names in (config.search_tasks, config.tasks))
    seeded = 1 if together else 1 + len(config.models.experts)
    generations = config.method.generations if together else children
    final = (1 if config.chosen is None else 2) * search + everything
    return (seeded + generations) * search + final


def _pods(config: Config, children: int) -> int:
    """Pods of the generations on a cluster: a generation is select, merge, mutate, evaluations, update; where children
    are large a merge and mutate each instead, and they may be evaluated one by one. KFP adds a driver for each task and
    run, for each generation where a run has several, and for each loop and child where there is a loop.
    """
    place, generations = config.place, config.method.generations
    evaluations = _groups(config, len(config.search_tasks))
    runs = math.ceil(generations / place.generations_per_run)
    nested = generations if place.generations_per_run > 1 else 0
    apart = config.evaluated_apart
    a_child = config.fused + (evaluations if apart else 0)
    a_generation = (2 if config.fused else 4) + (0 if apart else evaluations)
    loops = generations + children if a_child else 0
    return _PODS_A_TASK * (generations * a_generation + children * a_child) + runs + nested + loops


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
