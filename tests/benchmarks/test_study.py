"""The study: its methods have one budget, and its runs hand the search what its method needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.study import METHODS, Run, configured
from cycleqd.evaluation.task import Outcome
from cycleqd.search import state as states
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config, parse
from tests.evolution import write_models


class Coins:
    """Stands for the suite: verdicts that follow from a model's name."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks

    def evaluated(self, folder: Path, digest: str, part: str) -> dict[str, Any]:
        found = {}
        for number, task in enumerate(self.tasks):
            passed = [(sum(digest.encode()) + number * i) % 3 < 2 for i in range(6)]
            records = [SimpleNamespace(outcome=Outcome.PASSED if one else Outcome.WRONG) for one in passed]
            found[task] = SimpleNamespace(score=sum(passed) / 6, records=records)
        return found


def tiny(method: dict[str, Any], models: Path) -> Config:
    tree = configured(method, 0, 4, 6).model_dump(mode="json", by_alias=True)
    tree["models"]["base"] = str(models / "base")
    for expert, name in zip(tree["models"]["experts"].values(), "abc", strict=True):
        expert["path"] = str(models / name)
    return parse(tree, "test")


@pytest.mark.parametrize("cases", ["samples", "scores"])
def test_lexicase_gets_its_cases(tmp_path: Path, cases: str) -> None:
    config = tiny(
        {"algorithm": "lexicase", "population": 4, "lexicase_cases": cases}, write_models(tmp_path / "models")
    )
    run = Run(config, Coins(config.search_tasks), tmp_path)  # type: ignore[arg-type]
    while states.should_stop(config, run.state) is None:
        run.generation()
    assert len(run.state.children) == 4
    for model in run.state.population:
        if cases == "samples":
            assert {task: sum(bits) / len(bits) for task, bits in (model.verdicts or {}).items()} == model.scores
        else:
            assert model.verdicts is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_budget_and_the_same_final_model(name: str) -> None:
    config = configured(METHODS[name], seed=4, evaluations=24, items=10)
    assert (config.seed, config.method.stop.evaluations, config.method.final.kind) == (4, 24, "softmax")
    assert config.method.generations * algorithm(config).children >= 24
    assert len(config.search_tasks) == 3  # copying is for the report alone
