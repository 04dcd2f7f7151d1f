"""Random LoRA adapters in the plain form that engines take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from cycleqd.evaluation.engines import Adapter

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path, model: Path, seed: int, rank: int = 8, targets: Sequence[str] = TARGETS, scale: float = 0.3
) -> Adapter:
    """An adapter of a model's folder; the same seed gives the same one. `scale` is its matrices' standard deviation."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    random, tensors = torch.Generator().manual_seed(seed), {}
    with safe_open(model / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in targets:
                out, columns = file.get_slice(name).get_shape()
                key = f"base_model.model.{module}"
                tensors[f"{key}.lora_A.weight"] = scale * torch.randn(rank, columns, generator=random)
                tensors[f"{key}.lora_B.weight"] = scale * torch.randn(out, rank, generator=random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    return Adapter(digest, folder)


def merged(model: Path, adapter: Adapter, folder: Path) -> Path:
    """The model with an adapter added to its weights, as a folder of its own."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    pairs = load_file(adapter.folder / "adapter_model.safetensors")
    for name in [name for name in pairs if name.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        tensors[f"{module}.weight"] += pairs[name.replace("lora_A", "lora_B")] @ pairs[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
