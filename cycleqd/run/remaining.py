"""How long an evolution still takes: generations by those that have finished, finalising by its kinds of stages."""

from __future__ import annotations

import math
import statistics

from cycleqd.run.estimate import measured
from cycleqd.search import state as states
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.objects import Store

_LATEST = 5  # generations that are looked at: the speed of a machine changes, and so does what replies take


def seconds_left(config: Config, store: Store, state: State) -> float | None:
    """Seconds until the evolution is complete, as far as finished stages tell; None before a child was made.

    A stop rule on generations without a better average may end it sooner.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        state: The current snapshot.
    """
    generations = generations_left(config, state)
    latest = [_generation(store, number) for number in range(max(0, state.generation - _LATEST), state.generation)]
    if not latest:
        return None
    return generations * statistics.median(latest) + _finalising(config, measured(store))


def generations_left(config: Config, state: State) -> int:
    """Generations until the last one, or until the budget of evaluations is spent.

    Args:
        config: The evolution's configuration.
        state: The current snapshot.
    """
    if states.should_stop(config, state) is not None:
        return 0
    left = config.method.generations - state.generation
    budget = states.remaining(config, state)
    return left if budget is None else min(left, math.ceil(budget / algorithm(config).children))


def _generation(store: Store, number: int) -> float:
    """Seconds from the first stage's beginning to the update's end, in which some ran side by side."""
    keys = [key for key in store.list(layout.generation(number)) if key.endswith("/run.json")]
    runs = [run for key in keys if (run := store.find_json(key)) is not None]
    began, ended = min(run["started"] for run in runs), max(run["finished"] for run in runs)
    return float(ended - began) / 1000


def _finalising(config: Config, seconds: dict[str, float]) -> float:
    """What building and scoring the combined models takes, one after another; base and experts held out, too."""
    made, given = len(config.combined), 1 + len(config.models.experts) + len(config.extracted)
    held_out = given + made - max(len(config.lambdas) - 1, 0) + 1  # with the best single model
    evaluations = made * len(config.search_tasks) + held_out * len(config.tasks)
    return made * seconds.get("make", 0.0) + evaluations * seconds.get("evaluate", 0.0)
