"""Tiny Llamas with a tokenizer and a chat template, and the OS benchmark's root, made once a session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_model(seed, **configuration) → a folder; the same seed gives the same weights.

    2 layers of width 128, 4 heads of 32 (vLLM's CPU attention takes no smaller ones), byte vocabulary, context 256.
    """
    made: dict[str, Path] = {}

    def make(seed: int, **changes: object) -> Path:
        key = f"{seed}-{sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            _write(made[key], seed, changes)
        return made[key]

    return make


def _write(folder: Path, seed: int, changes: dict[str, object]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_only = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    shape = {
        "vocab_size": len(names),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).save_pretrained(folder)


@pytest.fixture(scope="session")
def os_image() -> Path:
    """The OS benchmark's root file system, made (in a minute) where it is missing and can be made."""
    from cycleqd.evaluation.benchmarks.os.root import default_tar
    from cycleqd.evaluation.benchmarks.os.root.build import build

    if not default_tar().exists():
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            pytest.skip(f"no OS root at {default_tar()}, and making one needs root and debootstrap")
        build(default_tar())
    return default_tar()
