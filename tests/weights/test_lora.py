"""Adapters that peft made give the weights that peft's own merging gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.lora import is_adapter, warnings
from cycleqd.weights.plain_adapter import write_adapter as write_plain
from tests.weights.adapters import (
    A,
    Q,
    edit_config,
    edit_tensors,
    loaded_model,
    merged_by_peft,
    opened_adapter,
    write_adapter,
    write_base,
)
from tests.weights.models import loaded

ADAPTERS: dict[str, dict[str, Any]] = {
    "rank 4": {},
    "rank 8, all linear layers": {"r": 8, "target_modules": "all-linear"},
    "rank-stabilised": {"use_rslora": True, "r": 8, "lora_alpha": 3},
    "other targets": {"target_modules": ["down_proj", "o_proj"], "layers_to_transform": [1]},
    "patterns": {  # the first that matches; peft sorts them when it saves
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, r".*\.0\..*k_proj": 6, "k_proj": 3},
        "alpha_pattern": {"^model.layers.1.mlp.up_proj": 5, r"layers\.\d+\.self_attn\.q_proj": 1},
    },
    "patterns, rank-stabilised": {"use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 2}},
    "part of a name is no match": {"rank_pattern": {"_proj": 2, "q": 3}, "alpha_pattern": {"self_attn": 3}},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "an output head of its own": {"target_modules": ["lm_head"]},
    "a regular expression as target": {"target_modules": r".*\.1\..*(gate|up)_proj", "exclude_modules": ["up_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_base_plus_b_a_is_what_peft_merges(base: Path, tmp_path: Path, name: str) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **ADAPTERS[name])
    if "lm_head" in ADAPTERS[name].get("target_modules", ()):  # peft saves the embeddings beside it
        tensors = load_file(folder / "adapter_model.safetensors")
        edit_tensors(folder, {key: None for key in tensors if "lora_" not in key})
    adapter, weights, merged = opened_adapter(folder, base), loaded(base), merged_by_peft(base, folder)
    assert is_adapter(LocalSource(folder).files())
    assert adapter.matrices and set(adapter.matrices) < set(weights)
    for tensor, value in weights.items():
        if value.ndim == 2:
            b, a = adapter.factors(tensor)
            assert b.dtype == a.dtype == torch.float32 and b.shape[1] == a.shape[0]
            assert torch.allclose(value + b @ a, merged[tensor], rtol=0, atol=1e-6)
        assert (tensor in adapter.matrices) == (not torch.equal(value, merged[tensor]))
    adapter.finish()


def test_keys_with_the_adapters_name_inside_and_16_bits_are_read(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    expected = opened_adapter(folder, base).factors(f"{Q}.weight")
    file = folder / "adapter_model.safetensors"
    named = {key.replace(".weight", ".default.weight"): value.bfloat16() for key, value in load_file(file).items()}
    save_file(named, file)
    for mine, theirs in zip(expected, opened_adapter(folder, base).factors(f"{Q}.weight"), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-2)
    edit_tensors(folder, {A.replace(".weight", ".other.weight"): torch.zeros(4, 32)})
    with pytest.raises(InvalidInputError, match="holds the adapters default, other; save it again with one"):
        opened_adapter(folder, base)


def test_an_absent_matrix_is_a_product_of_rank_0(base: Path, tmp_path: Path) -> None:
    adapter = opened_adapter(write_adapter(base, tmp_path / "adapter"), base)
    b, a = adapter.factors("model.layers.1.mlp.down_proj.weight")
    assert b.shape == (32, 0) and a.shape == (0, 48) and not (b @ a).any()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused_until_peft_converts_it(
    base: Path, tmp_path: Path, init: str
) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init, task_type="CAUSAL_LM")
    model = get_peft_model(loaded_model(base), settings)
    settings.init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    settings.init_lora_weights = init  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.01
    model.save_pretrained(tmp_path / "as it is")
    with pytest.raises(InvalidInputError, match="convert it with peft's save_pretrained"):
        opened_adapter(tmp_path / "as it is", base)
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    adapter, trained = opened_adapter(tmp_path / "converted", base), model.merge_and_unload().state_dict()
    for name in adapter.matrices:
        b, a = adapter.factors(name)
        assert b.shape[1] == 8 and torch.allclose(loaded(base)[name] + b @ a, trained[name], rtol=0, atol=1e-5)


def test_only_an_adapters_own_files_make_a_folder_one() -> None:
    assert is_adapter({"adapter_config.json": 1, "adapter_model.safetensors": 1, "README.md": 1})
    assert not is_adapter({"adapter_config.json": 1, "model-00001-of-00002.safetensors": 1})
    assert not is_adapter({"config.json": 1, "model.safetensors": 1})


def test_a_changed_byte_is_found_where_digests_are_recorded(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        adapter = opened_adapter(folder, base, digests)
        for name in adapter.matrices:
            adapter.factors(name)
        adapter.finish()
        data = (folder / file).read_bytes()
        changed = data[:-4] + bytes([data[-4] ^ 1]) + data[-3:] if file.endswith("s") else data.replace(b"8", b"9", 1)
        (folder / file).write_bytes(changed)
        adapter = opened_adapter(folder, base, digests)
        with pytest.raises(IntegrityError, match=f"{file} has sha256"):
            adapter.finish()
        (folder / file).write_bytes(data)


@pytest.mark.parametrize(
    ("recorded", "configured", "clauses"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "s3://models/base/Meta-Llama-3-8B-Instruct/", 0),
        ("/cache/models--meta-llama--Llama-3/snapshots/abc", "meta-llama/llama-3", 0),
        (None, "anything", 0),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base", 1),
        ("unsloth/llama-3-8b-bnb-4bit", "/models/llama-3-8b", 2),
    ],
)
def test_another_base_is_a_warning(
    base: Path, tmp_path: Path, recorded: str | None, configured: str, clauses: int
) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    edit_config(folder, base_model_name_or_path=recorded)
    found = warnings(opened_adapter(folder, base), configured)
    assert len(found) == clauses and all(str(folder) in clause and not clause.endswith(".") for clause in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_in_the_plain_form_is_read_back_and_peft_merges_the_same(
    base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    adapter = opened_adapter(
        write_adapter(base, tmp_path / "adapter", **ADAPTERS["patterns"]),
        base,
    )
    matrices = {name: adapter.factors(name) for name in adapter.matrices}
    manifest = write_plain(LocalSink(tmp_path / "plain"), matrices, "the/base", dtype)
    assert manifest.digests() == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "plain").iterdir()
    }
    plain, merged = opened_adapter(tmp_path / "plain", base), merged_by_peft(base, tmp_path / "plain")
    assert {found.rank for found in plain.matrices.values()} == {6} and plain.config.base == "the/base"
    for name, value in loaded(base).items():
        tau = torch.matmul(*matrices[name]) if name in matrices else torch.zeros(value.shape)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        assert torch.allclose(merged[name] - value, tau, rtol=0, atol=tolerance)
        if name in matrices:
            assert torch.allclose(torch.matmul(*plain.factors(name)), tau, rtol=0, atol=tolerance)


def test_a_factor_that_is_not_finite_in_the_dtype_leaves_nothing(tmp_path: Path) -> None:
    matrices = {f"{Q}.weight": (torch.full((3, 1), 1e9), torch.ones(1, 2))}
    with pytest.raises(InvalidInputError, match=f"A factor of {Q}.weight .* too large for torch.float16"):
        write_plain(LocalSink(tmp_path), matrices, "base", torch.float16)
    assert not list(tmp_path.iterdir())
