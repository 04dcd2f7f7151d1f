"""Which differences of two configurations change what is computed: every kind, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cycleqd.weights.compatibility import problems
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge
from cycleqd.weights.settings import differences
from tests.weights.models import CONFIG, mean, opened, tensors, write_model

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 48,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": None,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "sliding_window": 64, "max_window_layers": 1}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0, "sliding_window": 32}
GRANITE = {**LLAMA, "model_type": "granite", "residual_multiplier": 0.22, "logits_scaling": 8.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
NEOX = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}
GEMMA3 = {
    "model_type": "gemma3_text",
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
WRAPPED = {"model_type": "gemma3", "text_config": GEMMA3, "vision_config": {"hidden_size": 8, "patch_size": 2}}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bookkeeping": (
        LLAMA,
        LLAMA
        | {
            "unsloth_version": "2025.9",
            "unsloth_fixed": True,
            "dtype": "bfloat16",
            "torch_dtype": "float16",
            "transformers_version": "5.0",
            "_name_or_path": "org/name",
            "auto_map": {"AutoModel": "org/name--modeling.Model"},
            "attention_dropout": 0.1,
            "use_cache": False,
            "eos_token_id": [1, 2],
            "quantization_config": None,
            "initializer_range": 0.1,
        },
    ),
    "a limit": (LLAMA, LLAMA | {"max_position_embeddings": 256}),
    "rope's old and new spelling": (
        LLAMA,
        without(LLAMA, "rope_theta", "rope_scaling")
        | {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    ),
    "rope scaling absent and null": (LLAMA, without(LLAMA, "rope_scaling")),
    "theta absent": (LLAMA, without(LLAMA, "rope_theta")),
    "theta null": (LLAMA, LLAMA | {"rope_theta": None}),
    "a scaling's two names": (
        LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 32},
        LLAMA | {"rope_scaling": {**YARN, "attention_factor": None}},
    ),
    "longrope's two names": (
        LLAMA | {"rope_scaling": {"type": "su", "short_factor": [1.0]}, "original_max_position_embeddings": 64},
        LLAMA
        | {
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "a part's two names": (
        NEOX,
        {
            "model_type": "gpt_neox",
            "rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 0.25},
        },
    ),
    "two ropes": (
        GEMMA3,
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "a window that is off": (QWEN, QWEN | {"sliding_window": None, "use_sliding_window": False}),
    "a window that is off, other layers": (
        QWEN | {"use_sliding_window": False},
        QWEN | {"use_sliding_window": False, "sliding_window": 99, "max_window_layers": 2},
    ),
    "a window as long as the context": (LLAMA | {"sliding_window": None}, LLAMA | {"sliding_window": 128}),
    "heads, written or not": (LLAMA | {"head_dim": None, "num_key_value_heads": None}, LLAMA | {"head_dim": 16}),
    "a trainer's own": (LLAMA | {"run": "a"}, LLAMA | {"run": "b"}),
    "in a wrapper": (WRAPPED, WRAPPED | {"vision_config": {"hidden_size": 8, "attention_dropout": 0.1}}),
}

OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str, Any, Any]] = {
    "epsilon": (LLAMA, LLAMA | {"rms_norm_eps": 1e-6}, "rms_norm_eps", 1e-5, 1e-6),
    "soft caps": (GEMMA2, GEMMA2 | {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping", 50.0, 30.0),
    "a soft cap that is off": (GEMMA2, GEMMA2 | {"attn_logit_softcapping": None}, "attn_logit_softcapping", 50.0, None),
    "multipliers": (GRANITE, GRANITE | {"residual_multiplier": 0.3}, "residual_multiplier", 0.22, 0.3),
    "scalings": (GRANITE, GRANITE | {"logits_scaling": 4.0}, "logits_scaling", 8.0, 4.0),
    "activation": (LLAMA, LLAMA | {"hidden_act": "gelu"}, "hidden_act", "silu", "gelu"),
    "theta": (LLAMA, LLAMA | {"rope_theta": 10000.0}, "rope_theta", 500000.0, 10000.0),
    "theta in two spellings": (
        LLAMA,
        without(LLAMA, "rope_theta") | {"rope_parameters": {"rope_theta": 1e4}},
        "rope_theta",
        500000.0,
        10000.0,
    ),
    "a rope that is scaled": (LLAMA, LLAMA | {"rope_scaling": YARN}, "rope_type", "default", "yarn"),
    "a scaling's factor": (
        LLAMA | {"rope_scaling": YARN},
        LLAMA | {"rope_scaling": {**YARN, "factor": 8.0}},
        "factor",
        4.0,
        8.0,
    ),
    "a window in use": (GEMMA2, GEMMA2 | {"sliding_window": 16}, "sliding_window", 32, 16),
    "a window that is on": (QWEN, QWEN | {"use_sliding_window": True}, "sliding_window", None, 64),
    "tied": (LLAMA, LLAMA | {"tie_word_embeddings": True}, "tie_word_embeddings", False, True),
    "in a wrapper": (
        WRAPPED,
        WRAPPED | {"vision_config": {"hidden_size": 8, "patch_size": 4}},
        "vision_config.patch_size",
        2,
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_computes_the_same_is_no_difference(name: str) -> None:
    mine, theirs = SAME[name]
    assert list(differences(mine, theirs)) == list(differences(theirs, mine)) == []


@pytest.mark.parametrize("name", OTHER)
def test_what_computes_something_else_is_named_with_both_values(name: str) -> None:
    mine, theirs, key, first, second = OTHER[name]
    assert (key, first, second) in list(differences(mine, theirs))
    assert (key, second, first) in list(differences(theirs, mine))


def test_a_class_that_filled_in_both_leaves_nothing_open() -> None:
    mine = LLAMA | {"attention_multiplier": None, "num_key_value_heads": None}
    assert (
        list(differences(mine, LLAMA | {"num_key_value_heads": 4, "attention_multiplier": None}, complete=True)) == []
    )
    assert list(differences(mine, LLAMA | {"attention_multiplier": 0.5}, complete=True)) == [
        ("attention_multiplier", None, 0.5)
    ]


def test_a_problem_names_both_models_and_both_values(tmp_path: Path) -> None:
    base = opened(write_model(tmp_path / "base", tensors(0), CONFIG | {"rms_norm_eps": 1e-5}))
    other = opened(write_model(tmp_path / "other", tensors(1), CONFIG | {"rms_norm_eps": 1e-6}))
    assert problems(base, [other]) == [
        f"{tmp_path}/other and its base {tmp_path}/base differ in rms_norm_eps: 1e-06 against 1e-05;"
        " only models fine-tuned from one base can be merged."
    ]


@pytest.mark.parametrize("copies", ["base", "expert", "both"])
def test_a_tied_head_may_be_stored_twice_where_the_class_ties_by_default(tmp_path: Path, copies: str) -> None:
    config, models = {**CONFIG, "model_type": "gemma"}, {}
    for seed, name in enumerate(("base", "expert")):
        weights = tensors(seed)
        head = weights["model.embed_tokens.weight"].clone()
        weights.pop("lm_head.weight") if copies not in (name, "both") else weights.update({"lm_head.weight": head})
        models[name] = opened(write_model(tmp_path / name, weights, config))
    assert problems(models["base"], [models["expert"]]) == []
    merge(models["base"], [models["expert"]], mean(1.0), LocalSink(tmp_path / "child"))
    assert "lm_head.weight" not in opened(tmp_path / "child").tensors


@pytest.mark.parametrize("holder", ["base", "expert"])
def test_buffers_that_a_model_computes_are_no_difference(tmp_path: Path, holder: str) -> None:
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
    }
    base, expert = (
        opened(write_model(tmp_path / name, tensors(seed) | (buffers if name == holder else {})))
        for seed, name in enumerate(("base", "expert"))
    )
    assert problems(base, [expert]) == []
    merge(base, [expert], mean(1.0), LocalSink(tmp_path / "child"))
    assert opened(tmp_path / "child").tensors.keys() == tensors(0).keys()
