"""Our own compiled pipelines, run task by task: order, loops with their limit, what tasks hand on, failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cycleqd.run.graph import Graph, GraphTask
from cycleqd.search.config import Config
from pipelines.definitions import Kind, write
from tests.pipelines.configs import two_tasks

COMMON = {"evolution": "golden", "profile": "local@sha256:0"}
GENERATION = {**COMMON, "generation": 4}


def compiled(config: Config, kind: Kind, folder: Path, count: int = 1) -> dict[str, Any]:
    write(config, kind, count, folder / "pipeline.yaml")
    return next(iter(yaml.safe_load_all((folder / "pipeline.yaml").read_text())))


class Stages:
    """Answers as the stages do, and keeps what they were asked, in the order in which they ended."""

    def __init__(self, children: int = 5, failing: str = "") -> None:
        self.children = children
        self.failing = failing
        self.ended: list[GraphTask] = []
        self.begun: list[GraphTask] = []
        self.lock = threading.Lock()
        self.at_work, self.most = 0, 0

    def __call__(self, task: GraphTask) -> Mapping[str, Any]:
        with self.lock:
            self.begun.append(task)
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        try:
            threading.Event().wait(0.01)  # so that what may run at a time does
            if self.failing and self.failing in (task.name, task.inputs.get("item")):
                raise RuntimeError(f"{task.name} fails")
            return self.answer(task)
        finally:
            with self.lock:
                self.at_work -= 1
                self.ended.append(task)

    def answer(self, task: GraphTask) -> Mapping[str, Any]:
        if task.name == "select-parents":
            number = task.inputs["generation"] + task.inputs["offset"]
            return {"Output": [f"{number}-{child}" for child in range(self.children)]}
        if task.name == "choose-final":
            return {"Output": ["base", "final"]}
        if task.name in ("merge", "mutate"):
            return {"Output": task.inputs["children"]}
        return {"Output": task.inputs["item"]} if "item" in task.inputs else {}

    def named(self, name: str) -> list[GraphTask]:
        return [task for task in self.ended if task.name == name]


def test_a_generation_runs_its_loop_within_the_limit_and_collects_in_order(tmp_path: Path) -> None:
    stages = Stages()
    Graph(compiled(two_tasks(fused=True, parallelism=2), "generation", tmp_path), stages).run(GENERATION)
    names = [task.name for task in stages.ended]
    assert names[0] == "select-parents" and names[-1] == "update-archives"
    items = [f"4-{child}" for child in range(5)]
    for name in ("merge-and-mutate", "evaluate-child", "evaluate-child-2"):
        assert sorted(task.inputs["item"] for task in stages.named(name)) == items
    for item in items:
        order = [task.name for task in stages.ended if task.inputs.get("item") == item]
        assert order[0] == "merge-and-mutate" and sorted(order[1:]) == ["evaluate-child", "evaluate-child-2"]
    assert stages.named("update-archives")[0].inputs["children"] == items
    assert 2 <= stages.most <= 4  # two children, each on at most two benchmarks at a time
    assert {json.loads(task.inputs["tasks"])[0] for task in stages.ended if "tasks" in task.inputs} == {"one", "two"}


def test_small_children_are_made_in_one_task_a_step_and_may_be_evaluated_apart(tmp_path: Path) -> None:
    stages, items = Stages(3), ["4-0", "4-1", "4-2"]
    Graph(compiled(two_tasks(group="child", parallelism=1), "generation", tmp_path), stages).run(GENERATION)
    names = ["select-parents", "merge", "mutate", "evaluate-child", "evaluate-child", "evaluate-child"]
    assert [task.name for task in stages.ended] == [*names, "update-archives"]
    assert [task.inputs["item"] for task in stages.named("evaluate-child")] == items
    for name in ("merge", "mutate", "update-archives"):
        assert stages.named(name)[0].inputs["children"] == items


def test_a_task_has_its_image_its_source_and_whole_numbers(tmp_path: Path) -> None:
    stages, config = Stages(1), two_tasks()
    Graph(compiled(config, "generation", tmp_path), stages).run(GENERATION)
    for name, stage in (("select-parents", "select_parents"), ("merge", "merge"), ("evaluate-models", "evaluate")):
        (task,) = stages.named(name)
        assert task.image == config.place.image(stage)
        assert f"from components.{stage}.stage import run" in task.command[-1]
        assert task.arguments == ("--executor_input", "{{$}}", "--function_to_execute", name.replace("-", "_"))
    (selected,) = stages.named("select-parents")
    assert [type(selected.inputs[name]) for name in ("generation", "offset")] == [int, int]
    assert selected.outputs == ("Output",) and stages.named("update-archives")[0].outputs == ()


def test_several_generations_in_a_run_follow_one_another(tmp_path: Path) -> None:
    stages = Stages(2)
    config = two_tasks(generations_per_run=3, group="generation")
    Graph(compiled(config, "generation", tmp_path, 3), stages).run(GENERATION)
    each = ["select-parents", "merge", "mutate", "evaluate-models", "update-archives"]
    assert [task.name for task in stages.ended] == 3 * each
    assert [task.inputs["children"] for task in stages.named("update-archives")] == [
        [f"{number}-0", f"{number}-1"] for number in (4, 5, 6)
    ]


def test_finalising_scores_what_was_chosen(tmp_path: Path) -> None:
    stages = Stages()
    Graph(compiled(two_tasks(), "finalising", tmp_path), stages).run(COMMON)
    chosen = [task.name for task in stages.ended].index("choose-final")
    assert {tuple(task.inputs["models"]) for task in stages.ended[chosen + 1 :]} == {("base", "final")}
    before = [task.inputs["models"] for task in stages.ended[1:chosen]]
    assert before and all({"base", "expert-red", "naive"} <= set(models) for models in before)  # the default


def test_what_depends_on_a_failure_does_not_begin(tmp_path: Path) -> None:
    stages = Stages(failing="merge-and-mutate")
    with pytest.raises(RuntimeError, match="merge-and-mutate fails"):
        Graph(compiled(two_tasks(parallelism=1, fused=True), "generation", tmp_path), stages).run(GENERATION)
    assert [task.name for task in stages.begun] == ["select-parents", "merge-and-mutate"]


def test_what_runs_beside_a_failure_is_waited_for(tmp_path: Path) -> None:
    stages = Stages(failing="4-0")
    with pytest.raises(RuntimeError):
        Graph(compiled(two_tasks(parallelism=2, fused=True), "generation", tmp_path), stages).run(GENERATION)
    assert len(stages.begun) == len(stages.ended)
    finished = [task.name for task in stages.ended if task.inputs.get("item") == "4-1"]
    assert sorted(finished) == ["evaluate-child", "evaluate-child-2", "merge-and-mutate"]
    assert stages.named("update-archives") == []
