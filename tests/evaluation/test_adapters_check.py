"""Adapters are compared with peft's own logits before anything is built on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.adapters_check import check
from cycleqd.weights.local import LocalSink
from cycleqd.weights.plain_adapter import write_adapter as write_plain
from tests.weights.adapters import edit_tensors, opened_adapter, write_adapter, write_base

Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def expert(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"r": 8, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 1}}
    return write_adapter(base, tmp_path_factory.mktemp("adapter"), use_rslora=True, **settings)


@pytest.fixture
def ours(base: Path, expert: Path) -> Matrices:
    adapter = opened_adapter(expert, base)
    return {name: adapter.factors(name) for name in adapter.matrices}


def test_pefts_logits_are_ours_and_so_are_those_of_the_plain_form(
    base: Path, expert: Path, ours: Matrices, tmp_path: Path
) -> None:
    assert check(base, expert, ours) < 1e-5
    write_plain(LocalSink(tmp_path), ours, str(base))
    assert check(base, tmp_path, ours) < 1e-5


def test_another_scaling_is_refused_and_so_is_a_matrix_less(base: Path, expert: Path, ours: Matrices) -> None:
    scaled = {name: (b * 1.1, a) for name, (b, a) in ours.items()}
    for wrong in (scaled, dict(list(ours.items())[1:]), {}):
        with pytest.raises(InvalidInputError, match=f"The adapter {expert} gives other logits with peft.*; merge it"):
            check(base, expert, wrong)


def test_what_peft_or_transformers_cannot_take_is_refused(
    base: Path, expert: Path, ours: Matrices, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"adapts model.w.weight, which transformers' LlamaForCausalLM lacks"):
        check(base, expert, {"model.w.weight": (torch.zeros(2, 1), torch.zeros(1, 2))})
    write_plain(LocalSink(tmp_path), ours, str(base))
    edit_tensors(tmp_path, {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(3, 3)})
    with pytest.raises(InvalidInputError, match=f"peft cannot load the adapter {tmp_path} on {base}: ") as caught:
        check(base, tmp_path, ours)
    assert "\n" not in str(caught.value)
