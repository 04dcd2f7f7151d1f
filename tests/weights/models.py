"""Small checkpoints, written with the safetensors library itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import FileEntry, Manifest

Tensors = dict[str, torch.Tensor]

VOCABULARY, HIDDEN = 48, 24
CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY}
TOKENIZER: dict[str, Any] = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "</s>"}]}


def tensors(seed: int, dtype: torch.dtype = torch.bfloat16, spread: float = 0.02) -> Tensors:
    """A base's weights for seed 0, near it for the others: every kind of shape, and an integer buffer."""
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, 40),
        "model.layers.0.mlp.up_proj.weight": (40, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    found: Tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        value = torch.randn(shape, generator=torch.Generator().manual_seed(index)) * 0.1
        if seed:
            value = value + torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + index)) * spread
        found[name] = value.to(dtype)
    return {**found, "model.position_ids": torch.arange(7)}


def write_model(folder: Path, weights: Tensors, config: Mapping[str, Any] = CONFIG, shards: int = 1) -> Path:
    """A Hugging Face folder of one or more shards, with a tokenizer, a chat template and a file of the training."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "training_args.bin").write_bytes(b"\x80pickle")
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def opened(folder: Path, digests: Mapping[str, str] | None = None) -> Checkpoint:
    """The folder as a checkpoint."""
    return open_checkpoint(LocalSource(folder, digests))


def loaded(folder: Path) -> Tensors:
    """Every tensor of a folder, read by the safetensors library."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def manifest_of(folder: Path) -> Manifest:
    """A folder's manifest, computed apart from the code under test."""
    data = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Manifest({name: FileEntry(len(b), hashlib.sha256(b).hexdigest()) for name, b in data.items()})


def mean(*omega: float) -> Drawn[Crossover]:
    """The weighted mean with these ω."""
    return Drawn(Mean(), {"omega": list(omega)})


def drawn(mutation: Mutation | None = None, seed: int = 0) -> Drawn[Mutation]:
    """A mutation, SVD's with the paper's settings unless another is given, with this seed."""
    return Drawn(mutation or Svd(mode="rescale", w_max=2.0), {"seed": seed})
