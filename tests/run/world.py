"""A tiny evolution to run the whole pipeline on: three models of 2 layers, two cheap plug-in tasks, own services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
PLUGIN = '''
"""Scores that differ from model to model without meaning anything: a checksum of the reply, modulo a number."""

import json
import zlib
from pathlib import Path

from cycleqd.plugins import Episode, Outcome, Sample, SingleTurn, Task, Verdict


class Checksum(Task):
    method_version = 1

    def load(self, data: Path) -> list[Sample]:
        return [Sample(id=word, record={"word": word}) for word in json.loads(data.read_text())]

    def start(self, sample: Sample) -> Episode:
        return SingleTurn(sample, [{"role": "user", "content": sample.record["word"]}])

    def verdict(self, episode: Episode) -> Verdict:
        passed = zlib.crc32(episode.replies[-1].encode()) % 3 != self.settings["wrong"]
        return Verdict(Outcome.PASSED if passed else Outcome.WRONG, "checked the sum")
'''


def make_world(folder: Path, **changes: Any) -> Path:
    """Write models, tasks and configuration; returns the configuration's path. `changes` overlay its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("base", "red", "blue")):
        _write_model(folder / name, seed)
    (folder / "task.py").write_text(PLUGIN)
    (folder / "words.json").write_text(json.dumps([f"word{i:02d}" for i in range(24)]))
    tree: dict[str, Any] = {
        "name": "world",
        "seed": 7,
        "models": {
            "base": "base",
            "experts": {"red": {"path": "red", "task": "one"}, "blue": {"path": "blue", "task": "two"}},
        },
        "tasks": {
            name: {
                "class": "task.py:Checksum",
                "data": "words.json",
                "settings": {"wrong": wrong},
                "generation": {"max_tokens": 6},
            }
            for wrong, name in enumerate(("one", "two"))
        },
        "evaluation": {"engine": "transformers", "dtype": "float32", "threads": 1},
        "method": {
            "generations": 2,
            "children": 1,
            "grid": {"bins": 4},
            "baselines": {"task_arithmetic": [0.3, 0.6]},
        },
        "place": {"services": "embedded", "folder": "state", "group": "generation", "threads": 1, "workers": 1},
    }
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    path = folder / "cycleqd.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _write_model(folder: Path, seed: int) -> None:
    """The base, or the base plus seeded noise: an "expert" whose task vector is full of directions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape)
        torch.manual_seed(seed)
        if seed:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
