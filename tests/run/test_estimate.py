"""Counts and costs that `validate` states, worked by hand."""

from __future__ import annotations

from cycleqd.run.checks import check_method
from cycleqd.run.estimate import cells, estimate, measured, planned_children
from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from tests.pipelines.configs import LLAMA3, two_tasks


def test_the_published_setting() -> None:
    config = load(LLAMA3)
    assert planned_children(config) == 1200
    assert cells(config) == {"mbpp": 225, "db": 225, "os": 225}
    cost = estimate(config, 16_000_000_000, {})
    assert cost.models == 1204
    assert cost.evaluations == (1 + 3 + 1200 + 2) * 3 + (1 + 3 + 2 + 1) * 3
    assert cost.seconds is None
    assert cost.written == (1204 + 2) * 16_000_000_000
    assert cost.kept == (4 + 675 + 2) * 16_000_000_000
    tasks = 1200 * (2 + 1 + 1)  # select, update, merge, one evaluation of all tasks: a driver and a pod each
    assert cost.pods == 2 * tasks + 120 + 3 * 1200  # drivers of 120 runs of ten; of generations, loops, children
    assert list(check_method(config)) == []


def test_pods_of_a_generation_of_three_children() -> None:
    config = two_tasks(group="generation")
    method = config.method.model_copy(update={"generations": 1, "children": 3})
    cost = estimate(config.model_copy(update={"method": method}), 1000, {})
    assert cost.pods == 3 * 3 + 8  # docs/kubernetes.md, "What it costs"


def test_measured_seconds_give_the_time() -> None:
    config = two_tasks()
    cost = estimate(config, 1000, {"make": 2.0, "evaluate": 3.0})
    evaluations = (1 + 2 + 1200 + 3) * 2 + (1 + 2 + 3) * 3
    assert cost.evaluations == evaluations
    assert cost.seconds == 1200 * 2.0 + evaluations * 3.0


def test_seconds_are_those_of_the_newest_children(store: Store) -> None:
    def record(folder: str, seconds: float) -> None:
        parts = {"load": 1.0, "evaluate": seconds - 1, "generating": seconds - 2}  # generating is part of evaluate
        store.put_json(f"{folder}/run.json", {"started": 5000, "finished": 5000 + 1000 * seconds, "seconds": parts})

    assert measured(store) == {}
    for model in ("base", "final"):
        for task in ("one", "two"):
            record(layout.evaluation(model, task, "search"), 70)
            record(layout.evaluation(model, task, "test"), 90)
    assert measured(store) == {"evaluate": 70}
    for number in range(45):
        child, seconds = f"g{number:06d}-c00", 200 if number < 10 else 102
        record(layout.stage(child, "merge"), 6)
        for task in ("one", "two"):
            record(layout.evaluation(child, task, "search"), seconds)
    assert measured(store) == {"make": 6, "evaluate": 102}
    record(layout.stage("g000044-c00", "mutate"), 301)
    assert measured(store) == {"make": 307, "evaluate": 102}


def test_a_budget_bounds_the_children() -> None:
    config = load(LLAMA3)
    stop = config.method.stop.model_copy(update={"evaluations": 50})
    every = config.method.model_copy(update={"focus": "all", "generations": 10, "stop": stop})
    assert planned_children(config.model_copy(update={"method": every})) == 30
    longer = every.model_copy(update={"generations": 100})
    assert planned_children(config.model_copy(update={"method": longer})) == 50
