"""Adapters extracted from full experts: exact where the rank suffices, with energies as a float64 SVD has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.extract import Extraction, extract
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.kinds import MATRIX, kind_of
from cycleqd.weights.local import LocalSink, LocalSource
from tests.weights.adapters import merged_by_peft, opened_adapter, write_base
from tests.weights.models import loaded, opened, tensors, write_model

RANK = 3
UNCHANGED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def write_expert(base: Path, folder: Path, rank: int | None, unchanged: Iterable[str] = (UNCHANGED,)) -> Path:
    """The base plus a task vector: matrices of this rank (None: full), and everything else changed a little."""
    weights = load_file(base / "model.safetensors")
    random = torch.Generator().manual_seed(7)
    for name, value in weights.items():
        if name in unchanged:
            continue
        if value.ndim == 2 and rank is not None and kind_of(opened(base), name) == MATRIX:
            left, right = (torch.randn(side, rank, generator=random) for side in value.shape)
            value += 0.01 * left @ right.T
        else:
            value += 0.01 * torch.randn(value.shape, generator=random)
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def extracted(base: Path, expert: Path, folder: Path, rank: int = RANK, **settings: Any) -> Extraction:
    return extract(opened(base), opened(expert), rank, LocalSink(folder), base_model=str(base), **settings)


def task_vectors(base: Path, expert: Path) -> dict[str, torch.Tensor]:
    """τ of every tensor in float64."""
    start, end = loaded(base), loaded(expert)
    return {name: end[name].double() - start[name].double() for name in start}


def test_a_task_vector_of_the_rank_is_kept_whole(base: Path, tmp_path: Path) -> None:
    expert = write_expert(base, tmp_path / "expert", RANK)
    found = extracted(base, expert, tmp_path / "adapter")
    adapter, tau = opened_adapter(tmp_path / "adapter", base), task_vectors(base, expert)
    assert len(adapter.matrices) == 13 and UNCHANGED not in adapter.matrices
    merged, start = merged_by_peft(base, tmp_path / "adapter"), loaded(base)
    for name in adapter.matrices:
        b, a = adapter.factors(name)
        assert torch.linalg.matrix_norm(b @ a - tau[name]) < 1e-4 * torch.linalg.matrix_norm(tau[name])
        assert torch.allclose(merged[name], start[name] + b @ a, rtol=0, atol=1e-6)
    assert found.kept == pytest.approx(1, abs=1e-6)
    assert all(energy.kept == pytest.approx(energy.total, rel=1e-5) for energy in found.matrices.values())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "adapter").iterdir()}
    assert found.manifest.digests() == files


@pytest.mark.parametrize("rank", [1, 5, 24, 64])
def test_energies_are_those_of_a_singular_value_decomposition(base: Path, tmp_path: Path, rank: int) -> None:
    expert = write_expert(base, tmp_path / "expert", None)
    found = extracted(base, expert, tmp_path / "adapter", rank)
    tau, adapter = task_vectors(base, expert), opened_adapter(tmp_path / "adapter", base)
    for name, energy in found.matrices.items():
        b, a = adapter.factors(name)
        assert b.shape[1] == a.shape[0] == rank
        squares = torch.linalg.svdvals(tau[name]).square()
        assert energy.total == pytest.approx(float(squares.sum()), rel=1e-5)
        assert energy.kept == pytest.approx(float(squares[:rank].sum()), rel=1e-5)
        assert float((b @ a).double().square().sum()) == pytest.approx(energy.kept, rel=1e-4)
    assert list(found.others) == ["embeddings", "heads", "norms"]
    dropped = {"embeddings": "embed", "heads": "head", "norms": "norm"}
    everything = sum(float(value.square().sum()) for value in tau.values())
    for kind, share in found.other_shares.items():
        mine = sum(float(value.square().sum()) for name, value in tau.items() if dropped[kind] in name)
        assert share == pytest.approx(mine / everything, rel=1e-5)
    carried = {name: float(tau[name].square().sum()) for name in found.matrices}
    kept = sum(float(torch.linalg.svdvals(tau[name]).square()[:rank].sum()) for name in carried)
    assert found.kept == pytest.approx(kept / sum(carried.values()), rel=1e-5)


def test_threads_change_no_byte_and_no_number(base: Path, tmp_path: Path) -> None:
    expert = write_expert(base, tmp_path / "expert", None)
    one = extracted(base, expert, tmp_path / "1", threads=1)
    assert all(extracted(base, expert, tmp_path / str(count), threads=count) == one for count in (2, 5))
    assert [energy.kept for energy in one.matrices.values()] != []


def test_16_bits_and_progress(tmp_path: Path) -> None:
    start, expert = (write_model(tmp_path / str(seed), tensors(seed)) for seed in (0, 1))
    written: list[int] = []
    found = extracted(start, expert, tmp_path / "adapter", 4, progress=written.append)
    tau = task_vectors(start, expert)
    assert set(found.matrices) == {name for name in tau if "layers" in name}
    assert sum(written) == 4 * 4 * (40 + 24 + 40 + 24 + 24 + 24)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values()) and len(weights) == 6


def test_an_expert_that_is_its_base_is_refused(base: Path, tmp_path: Path) -> None:
    same = write_expert(base, tmp_path / "expert", None, unchanged=list(loaded(base)))
    for keep_dense in (False, True):
        with pytest.raises(InvalidInputError, match=r"has the weights of its base .*nothing to extract; check both"):
            extracted(base, same, tmp_path / "adapter", keep_dense=keep_dense)
    assert not list((tmp_path / "adapter").iterdir())


def test_an_expert_that_changed_what_no_adapter_carries_needs_it_kept(base: Path, tmp_path: Path) -> None:
    """Then its adapter is zero; without, nothing of it would be left."""
    other = write_expert(base, tmp_path / "expert", None, unchanged=[n for n in loaded(base) if "embed" not in n])
    with pytest.raises(InvalidInputError, match=r"base .* in embeddings alone, .*set models.keep_dense"):
        extracted(base, other, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())
    found = extracted(base, other, tmp_path / "adapter", keep_dense=True)
    assert found.matrices == {} and found.kept == 1
    assert found.other_shares == {"embeddings": 1, "heads": 0, "norms": 0}
    adapter = opened_adapter(tmp_path / "adapter", base)
    (name,) = adapter.matrices
    b, a = adapter.factors(name)
    assert b.shape[1] == RANK and not (b @ a).any()
    merged, start = merged_by_peft(base, tmp_path / "adapter"), loaded(base)
    assert all(torch.equal(merged[name], start[name]) for name in merged)


def test_what_is_broken_leaves_nothing(base: Path, tmp_path: Path) -> None:
    expert = write_expert(base, tmp_path / "expert", None)
    wrong = {"model.safetensors": "0" * 64}
    model = opened(expert, wrong)
    with pytest.raises(IntegrityError, match=r"expert/model\.safetensors has sha256"):
        extract(opened(base), model, RANK, LocalSink(tmp_path / "adapter"), base_model="base")
    weights = load_file(expert / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][2, 3] = float("nan")
    save_file(weights, expert / "model.safetensors")
    with pytest.raises(InvalidInputError, match=r"o_proj.weight in .*expert/model.safetensors holds NaN or Inf"):
        extracted(base, expert, tmp_path / "adapter")
    with pytest.raises(InvalidInputError, match="only models fine-tuned from one base"):
        extracted(write_base(tmp_path / "other", hidden_size=64), expert, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())


def test_what_no_adapter_carries_is_told_by_kind(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "matrices": (8, 8), "norms": (8,), "biases": (8,), "embeddings": (48, 8), "heads": (48, 8),
        "fused experts": (4, 8, 8), "routers": (4, 8), "others": (8,),
    }  # fmt: skip
    names = {
        "model.layers.0.mlp.gate_proj.weight": "matrices",
        "model.layers.0.input_layernorm.weight": "norms",
        "model.layers.0.self_attn.q_proj.bias": "biases",
        "model.embed_tokens.weight": "embeddings",
        "lm_head.weight": "heads",
        "model.layers.0.mlp.experts.gate_up_proj": "fused experts",
        "model.layers.0.mlp.gate.weight": "routers",
        "model.layers.0.mixer.A_log": "others",
    }
    found = {name: TensorInfo(name, "F32", shapes[kind], "model.safetensors", 0, 0) for name, kind in names.items()} | {
        name: TensorInfo(name, "F32", (8, 8), "model.safetensors", 0, 0)
        for name in ("model.layers.0.mlp.experts.3.up_proj.weight", "model.layers.0.mixer.D")
    }
    model = Checkpoint(LocalSource(tmp_path), {"vocab_size": 48}, found, {})
    assert {name: kind_of(model, name) for name in names} == names
    assert kind_of(model, "model.layers.0.mlp.experts.3.up_proj.weight") == "fused experts"
    assert kind_of(model, "model.layers.0.mixer.D") == "others"
