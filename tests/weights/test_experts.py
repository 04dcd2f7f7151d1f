"""Experts that are fused in one tensor are mutated matrix by matrix, each with factors of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.crossover.ties import Ties
from cycleqd.search.operators.mutation import Matrix
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge, mutate
from tests.weights.models import Tensors, drawn, loaded, mean, opened, write_model

FUSED, KERNEL, BIASES = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mixer.conv1d.weight", "experts.bias"


def model(folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = {FUSED: (3, 12, 20), KERNEL: (20, 1, 4), BIASES: (3, 20)}
    weights: Tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return write_model(folder, weights)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for seed in range(3):
        model(tmp_path / str(seed), seed)
    return tmp_path


def test_every_expert_is_the_svd_of_its_own_slice(zoo: Path) -> None:
    base, expert = opened(zoo / "0"), opened(zoo / "1")
    mutation = drawn(Svd(mode="rescale", w_max=2.0), seed=5)
    merge(base, [expert], mean(1.0), LocalSink(zoo / "child"), mutation=mutation)
    before, origin, found = loaded(zoo / "1"), loaded(zoo / "0"), loaded(zoo / "child")
    for index in range(3):
        factors = mutation.operator.factors(mutation.values, Matrix(f"{FUSED}[{index}]", 12, False))
        u, s, v = torch.linalg.svd((before[FUSED][index] - origin[FUSED][index]).double(), full_matrices=False)
        expected = origin[FUSED][index] + (u * (s * torch.tensor(factors).double())) @ v
        assert torch.allclose(found[FUSED][index].double(), expected.double(), atol=1e-5)
    assert torch.equal(found[KERNEL], before[KERNEL]) and torch.equal(found[BIASES], before[BIASES])


@pytest.mark.parametrize("crossover", [mean(0.7, 0.3), Drawn(Ties(), {"omega": [0.7, 0.3]})])
def test_fused_and_separate_stages_give_the_same_bytes(zoo: Path, crossover: Drawn[Crossover]) -> None:
    """TIES needs a tensor whole: its stack is a unit of several matrices."""
    base, parents = opened(zoo / "0"), [opened(zoo / "1"), opened(zoo / "2")]
    at_once = merge(base, parents, crossover, LocalSink(zoo / "a"), mutation=drawn(), threads=1)
    merge(base, parents, crossover, LocalSink(zoo / "merged"))
    assert mutate(base, opened(zoo / "merged"), drawn(), LocalSink(zoo / "b"), threads=2) == at_once


def test_on_a_gpu_slices_are_computed_together(zoo: Path) -> None:
    """In the place of a GPU a device that is not called "cpu"."""
    base = opened(zoo / "0")
    here = merge(base, [opened(zoo / "1")], mean(1.0), LocalSink(zoo / "here"), mutation=drawn())
    there = merge(base, [opened(zoo / "1")], mean(1.0), LocalSink(zoo / "there"), mutation=drawn(), device="cpu:0")
    assert here.files.keys() == there.files.keys()
    assert torch.allclose(loaded(zoo / "here")[FUSED], loaded(zoo / "there")[FUSED], atol=1e-5)
