"""Checkpoints in bf16 with the shapes of real models, made once and kept for the next run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cycleqd.weights.layout import Shard

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    kv: int
    vocabulary: int
    heads: int
    tied: bool


SMALL = Shape(2048, 8192, 512, 128_256, 32, tied=True)  # Llama-3.2-1B, 16 layers
LARGE = Shape(4096, 14_336, 1024, 128_256, 32, tied=False)  # Llama-3.1-8B, 32 layers


def model_tensors(shape: Shape, layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes in the order of a Hugging Face checkpoint."""
    h, f, kv = shape.hidden, shape.intermediate, shape.kv
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, h)}
    layer: Mapping[str, tuple[int, ...]] = {
        "input_layernorm": (h,), "mlp.down_proj": (h, f), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h),
        "post_attention_layernorm": (h,), "self_attn.k_proj": (kv, h), "self_attn.o_proj": (h, h),
        "self_attn.q_proj": (h, h), "self_attn.v_proj": (kv, h),
    }  # fmt: skip
    for number in range(layers):
        tensors |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    tensors["model.norm.weight"] = (h,)
    return tensors if shape.tied else {**tensors, "lm_head.weight": (shape.vocabulary, h)}


def make_models(folder: Path, shape: Shape, layers: int) -> Path:
    """base, expert a and expert b, made in a process of its own: a child's peak memory begins at its parent's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_make_models, folder, shape, layers).result()


def make_hollow(folder: Path, shape: Shape, layers: int) -> Path:
    """A model that can be opened but holds zeros only: files with holes, which take no space on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in _shards(shape, layers, folder):
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            file.truncate(len(shard.header) + sum(tensor.nbytes for tensor in shard.tensors))
    return folder


def _make_models(folder: Path, shape: Shape, layers: int) -> Path:
    """bf16, at most four shards each."""
    for seed, model in enumerate(("base", "a", "b")):
        if (folder / model / "config.json").exists():
            continue
        (folder / model).mkdir(parents=True, exist_ok=True)
        for shard in _shards(shape, layers, folder / model):
            with (folder / model / shard.name).open("wb") as file:
                file.write(shard.header)
                for tensor in shard.tensors:
                    _write_random(file, tensor.nbytes // 2, seed)
    return folder


def _shards(shape: Shape, layers: int, folder: Path) -> Iterator[Shard]:
    """The files of a model to write; then its index and its config.json, which say that it is complete."""
    from cycleqd.weights.headers import TensorInfo
    from cycleqd.weights.layout import INDEX, index_json, plan_shards

    tensors = model_tensors(shape, layers)
    sizes = {name: 2 * _product(size) for name, size in tensors.items()}
    infos = [TensorInfo(name, "BF16", size, "", 0, sizes[name]) for name, size in tensors.items()]
    shards = plan_shards(infos, max(sum(sizes.values()) // 4 + 64 * MEGABYTE, max(sizes.values())))
    yield from shards
    if len(shards) > 1:
        (folder / INDEX).write_bytes(index_json(shards))
    (folder / "config.json").write_text(json.dumps(_config(shape, layers)))


def _product(size: tuple[int, ...]) -> int:
    result = 1
    for side in size:
        result *= side
    return result


def _write_random(file: Any, count: int, seed: int) -> None:
    """`count` normal weights, the same 16 million over and over."""
    values = _weights(seed)
    for start in range(0, count, len(values) // 2):
        file.write(values[: 2 * (count - start)])


@cache
def _weights(seed: int) -> Any:
    """Deviation 0.02 for the base, a tenth of that beside it for an expert."""
    import torch

    base = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02
    other = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed)) * (0.002 if seed else 0.0)
    return (base + other).bfloat16().view(torch.uint8).numpy()


def _config(shape: Shape, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv * shape.heads // shape.hidden, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def size_mb(folder: Path) -> float:
    """Megabytes (10^6) of a model's tensors."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / MEGABYTE
