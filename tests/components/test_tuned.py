"""Task arithmetic with λ tuned on the search split: the baseline that every report names, or says is not measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load

from cycleqd.errors import IntegrityError
from cycleqd.run.steps import finalised, finalising_step, find_state
from cycleqd.search.records import average
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config, manifest
from cycleqd.storage.results import need_result
from cycleqd.storage.scores import scored_models
from cycleqd.storage.tuned import find_tuned, tune
from tests.evolution import Evolution

VALUES = [0.25, 1.0, 0.5]


@pytest.fixture(params=["better", "softmax"])
def searched(request: pytest.FixtureRequest, evolution: Callable[..., Evolution]) -> Evolution:
    method = {"generations": 0, "final": {"kind": request.param}, "baselines": {"task_arithmetic": VALUES}}
    made = evolution(method=method)
    made.seeding()
    return made


def tensors(made: Evolution, model: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in manifest(made.store, model).files:
        if name.endswith(".safetensors"):
            found |= load(made.store.get(f"{layout.checkpoint(model)}/{name}"))
    return found


def test_the_best_lambda_on_the_search_split_is_scored_held_out(searched: Evolution) -> None:
    store, config = searched.store, searched.config
    ids = ["lambda-0.25", "lambda-1", "lambda-0.5"]
    searched.aggregate()
    base, half = tensors(searched, "base"), tensors(searched, "lambda-0.5")
    experts = [tensors(searched, f"expert-{name}") for name in config.models.experts]
    for name, theta in base.items():
        expected = theta.double() + 0.5 * sum(expert[name].double() - theta.double() for expert in experts)
        torch.testing.assert_close(half[name].double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(IntegrityError, match=r"lambda-0\.25.*is missing"):
        tune(store, load_config(store))
    searched.evaluate([*(model for model in config.combined if model != config.chosen)])
    wanted = searched.choose()
    scores = {model.model.id: average(model.scores) for model in scored_models(store, config, ids)[0]}
    best = max(ids, key=lambda model: scores[model])
    assert find_tuned(store) == best and best in wanted and not (set(ids) - {best}) & set(wanted)
    assert need_result(store, layout.TUNED)["outputs"]["averages"] == scores
    before = store.get(layout.result(layout.TUNED))
    assert searched.choose() == wanted and store.get(layout.result(layout.TUNED)) == before, "a rerun changes nothing"
    state = find_state(store)
    assert state is not None and finalising_step(store).name == "finalising"
    searched.evaluate(wanted, "test")
    searched.evaluate(wanted, "search")
    assert finalised(load_config(store), store, state)
    store.delete([layout.result(layout.TUNED)])
    assert not finalised(load_config(store), store, state)
