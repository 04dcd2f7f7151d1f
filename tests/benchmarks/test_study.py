"""The study's methods are valid configurations of one budget."""

from __future__ import annotations

import pytest

from benchmarks.study import METHODS, configured
from cycleqd.search.algorithms import algorithm


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_budget_and_the_same_final_model(name: str) -> None:
    config = configured(METHODS[name], seed=4, evaluations=24, items=10)
    assert (config.seed, config.method.stop.evaluations, config.method.final.kind) == (4, 24, "softmax")
    assert config.method.generations * algorithm(config).children >= 24
    assert len(config.search_tasks) == 3  # copying is for the report alone
