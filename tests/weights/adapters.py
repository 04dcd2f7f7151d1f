"""Small Llama models of transformers, and adapters that peft itself makes for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cycleqd.weights.local import LocalSource
from cycleqd.weights.lora import LoraAdapter, open_adapter
from tests.weights.models import Tensors, opened

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
Q = "model.layers.0.self_attn.q_proj"
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


def write_base(folder: Path, **changes: Any) -> Path:
    """A model in float32 with its own input and output embeddings, unless changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**{**SHAPE, "tie_word_embeddings": False, **changes})
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter as peft saves it, with random A and B; `settings` as peft's LoraConfig takes them."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        model = get_peft_model(loaded_model(base), LoraConfig(**{**chosen, **settings}))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(folder))
    return folder


def loaded_model(base: Path) -> Any:
    """The model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def merged_by_peft(base: Path, adapter: Path) -> Tensors:
    """The weights after peft's merge_and_unload."""
    from peft import PeftModel

    found: Tensors = PeftModel.from_pretrained(loaded_model(base), adapter).merge_and_unload().state_dict()
    return found


def opened_adapter(folder: Path, base: Path, digests: Mapping[str, str] | None = None) -> LoraAdapter:
    """The folder as an adapter of this base."""
    return open_adapter(LocalSource(folder, digests), opened(base))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings of adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of adapter_model.safetensors."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: value for name, value in {**load_file(path), **changes}.items() if value is not None}
    save_file(tensors, path)
