"""Adapters that are more or other than B A on their base are refused in one sentence that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cycleqd.errors import InvalidInputError
from tests.weights.adapters import A, B, Q, edit_config, edit_tensors, opened_adapter, write_adapter, write_base

MERGE = "; merge it into its base with peft's merge_and_unload and use the merged model as the expert"
OWN = "; merge it into the base that it was trained on"
CONVERT = (
    "; convert it with peft's save_pretrained.*path_initial_model_for_weight_conversion.*or merge it into the base"
)

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "IA3": ({"peft_type": "IA3"}, f"type IA3, and only LORA can be an expert as it is{MERGE}"),
    "LoHa": ({"peft_type": "LOHA"}, f"type LOHA.*{MERGE}"),
    "no type": ({"peft_type": None}, "type None"),
    "DoRA": ({"use_dora": True}, f"uses DoRA, which also rescales the base's weights{MERGE}"),
    "bias": ({"bias": "lora_only"}, f"also trains its base's biases \\(bias: lora_only\\){MERGE}"),
    "biases of LoRA": ({"lora_bias": True}, f"biases in its LoRA layers \\(lora_bias\\){MERGE}"),
    "whole modules": ({"modules_to_save": ["embed_tokens"]}, f"whole trained modules \\(modules_to_save\\){MERGE}"),
    "tokens": ({"trainable_token_indices": [1, 2]}, f"embeddings of single tokens.*{MERGE}"),
    "tokens by module": ({"trainable_token_indices": {"embed_tokens": [1]}}, "embeddings of single tokens"),
    "parameters": ({"target_parameters": ["experts.up"]}, f"parameters instead of modules.*{MERGE}"),
    "transposed": ({"fan_in_fan_out": True}, f"stored transposed \\(fan_in_fan_out\\){MERGE}"),
    "aLoRA": ({"alora_invocation_tokens": [5]}, "activated LoRA.*; train it without alora_invocation_tokens"),
    "QA-LoRA": ({"use_qalora": True}, "pools its inputs.*; train it without use_qalora"),
    "Arrow": ({"arrow_config": {"top_k": 2}}, "routes between other adapters.*; use one of those"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, f"block-diagonal.*{MERGE}"),
    "layers repeated": (
        {"layer_replication": [[0, 2], [0, 2]]},
        "repeats layers.*; train it without layer_replication",
    ),
    "Megatron": ({"megatron_config": {"a": 1}}, "Megatron's layers.*; save it for a model of transformers"),
    "PiSSA": ({"init_lora_weights": "pissa"}, f"its initialisation changed \\(PiSSA\\){CONVERT}"),
    "PiSSA, iterated": ({"init_lora_weights": "pissa_niter_16"}, f"\\(PiSSA\\){CONVERT}"),
    "OLoRA": ({"init_lora_weights": "OLoRA"}, f"\\(OLoRA\\){CONVERT}"),
    "CorDA": ({"init_lora_weights": "corda"}, f"\\(CorDA\\){CONVERT}"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, f"\\(LoRA-GA\\){CONVERT}"),
    "LoftQ": ({"init_lora_weights": "loftq"}, f"\\(LoftQ\\){OWN}"),
    "KaSA": ({"init_lora_weights": "kasa"}, f"\\(KaSA\\){OWN}"),
    "KaSA's settings": ({"kasa_config": {"beta": 1e-4}}, f"a base that KaSA changed{OWN}"),
    "rank 0": ({"r": 0}, "0 is no positive whole number.*; correct it or save the adapter again"),
    "alpha in words": ({"lora_alpha": "16"}, "'16' is no number"),
    "broken pattern": ({"rank_pattern": {"(q_proj": 4}}, "a rank, an alpha or a pattern that peft does not write"),
    "patterns as a list": ({"alpha_pattern": ["q_proj"]}, "a rank, an alpha or a pattern that peft does not write"),
    "another rank": (
        {"r": 8},
        r"lora_A.weight in .* has the shape \[4, 32\], and rank 8 .* \[8, 32\]; use an adapter of this base",
    ),
}

Tensors = Mapping[str, torch.Tensor | None]
OTHER_Q = "base_model.model.model.layers.0.self_attn.qq_proj.lora_{}.weight"
EMBEDDING, NORM = "base_model.model.model.embed_tokens.lora_{}.weight", "base_model.model.model.norm.lora_{}.weight"


def pair(name: str, out: int = 32, inputs: int = 32) -> dict[str, torch.Tensor]:
    """A and B of one module."""
    return {name.format("A"): torch.ones(4, inputs), name.format("B"): torch.ones(out, 4)}


TENSORS: dict[str, tuple[Tensors, str]] = {
    "DoRA": ({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(32)}, f"holds DoRA's magnitudes.*{MERGE}"),
    "biases": ({f"base_model.model.{Q}.lora_B.bias": torch.ones(32)}, f"biases in its LoRA layers.*{MERGE}"),
    "embedding": (
        {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 96)},
        f"adapts an embedding.*{MERGE}",
    ),
    "embedding as a matrix": (
        pair(EMBEDDING, 96),
        f"adapts an embedding.*; train it without embed_tokens in target_modules, or {MERGE[2:]}",
    ),
    "tokens": (
        {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 32)},
        f"single tokens.*{MERGE}",
    ),
    "the base's own": (
        {"base_model.model.lm_head.base_layer.weight": torch.ones(96, 32)},
        f"also holds base_model.model.lm_head.base_layer.weight of its base .*save_embedding_layers=False.*{MERGE}",
    ),
    "a whole tensor": (
        {"base_model.model.model.norm.weight": torch.ones(32)},
        f"also holds base_model.model.model.norm.weight, which is neither A nor B.*{MERGE}",
    ),
    "no prefix": (pair("model.layers.0.self_attn.q_proj.lora_{}.weight"), "neither A nor B of a LoRA layer"),
    "a norm": (pair(NORM), "adapts model.norm, whose weight in .* is no matrix; train it without norm"),
    "lacked by the base": (
        pair(OTHER_Q),
        r"adapts model.layers.0.self_attn.qq_proj, and .* has no .*\(the nearest are model.layers.0.self_attn.q_proj."
        r"weight, .*\); use an adapter of this base",
    ),
    "A alone": ({B: None}, f"lacks lora_B of {Q}; fetch it or save the adapter again"),
    "B alone": ({A: None}, f"lacks lora_A of {Q}; fetch it or save the adapter again"),
    "narrow A": (
        {A: torch.ones(4, 31)},
        r"has the shape \[4, 31\], and rank 4 and the base's matrix ask for \[4, 32\]",
    ),
    "short B": ({B: torch.ones(30, 4)}, r"has the shape \[30, 4\].*ask for \[32, 4\]; use an adapter of this base"),
    "integers": ({A: torch.ones(4, 32).int()}, "is stored as I32; save it in float32 or bfloat16"),
}

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "config in pieces": (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
    "config of another kind": (lambda f: (f / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors; fetch it"),
    "pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "is pickled.*can run code; if you trust it, save it as safetensors: python -c .*save_pretrained",
    ),
    "pointer": (
        lambda f: (f / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha"),
        "a pointer of Git LFS, not the file itself; run git lfs pull there",
    ),
    "truncated": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10" + bytes(11)), "truncated"),
    "empty": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "truncated"),
    "no layers": (
        lambda f: edit_tensors(f, dict.fromkeys(tensor_names(f))),
        "holds no LoRA layer; save it again with one trained adapter",
    ),
}


def tensor_names(folder: Path) -> list[str]:
    """The names in adapter_model.safetensors."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter"), target_modules=["q_proj"])


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "expert"))


def refused(adapter: Path, base: Path, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        opened_adapter(adapter, base)
    message = str(caught.value)
    assert str(adapter) in message and "\n" not in message and message.endswith(".") and ". " not in message


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_no_plain_lora_is_refused(adapter: Path, base: Path, name: str) -> None:
    changes, sentence = CONFIGS[name]
    edit_config(adapter, **changes)
    refused(adapter, base, sentence)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_product_on_this_base_are_refused(adapter: Path, base: Path, name: str) -> None:
    changes, sentence = TENSORS[name]
    edit_tensors(adapter, changes)
    refused(adapter, base, sentence)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_missing_or_broken_are_refused(adapter: Path, base: Path, name: str) -> None:
    damage, sentence = FILES[name]
    damage(adapter)
    refused(adapter, base, sentence)


def test_an_adapter_of_a_tied_head_is_refused(adapter: Path, tmp_path: Path) -> None:
    tied = write_base(tmp_path / "tied", tie_word_embeddings=True)
    edit_tensors(adapter, pair("base_model.model.lm_head.lora_{}.weight", 96))
    refused(
        adapter, tied, f"adapts lm_head, which is tied to the embeddings.*; train it without lm_head.*or {MERGE[2:]}"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_when_they_are_read(adapter: Path, base: Path, value: float) -> None:
    broken = torch.ones(32, 4)
    broken[3, 1] = value
    edit_tensors(adapter, {B: broken})
    found = opened_adapter(adapter, base)
    with pytest.raises(InvalidInputError, match=f"{B} in {adapter}/.* holds NaN or Inf; the adapter is broken"):
        found.factors(f"{Q}.weight")


def test_settings_that_only_say_how_it_was_trained_are_no_matter(adapter: Path, base: Path) -> None:
    training = {"eva_config": {"rho": 2.0}, "corda_config": {"x": 1}, "loftq_config": {}, "lora_dropout": 0.1}
    edit_config(adapter, **training, layers_to_transform=[0], exclude_modules=["k_proj"], init_lora_weights="eva")
    assert len(opened_adapter(adapter, base).matrices) == 2


def test_a_setting_of_another_library_and_of_a_new_peft_is_no_matter(adapter: Path, base: Path) -> None:
    edit_config(adapter, qat_scheme=None, velora_config=None, init_lora_weights="mica", unsloth=True)
    opened_adapter(adapter, base)
