"""An evolution of tiny models for tests, its stages called directly, as the pipelines call them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import items
from cycleqd.search import config as configuration
from cycleqd.search.config import Config
from cycleqd.storage.evolution import current, load_config
from cycleqd.storage.finalising import compared
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import keep, keep_place
from cycleqd.storage.settings import Settings

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TASKS = ("one", "two", "three")
EXPERTS = ("a", "b", "c")


@dataclass(frozen=True)
class Evolution:
    """A configuration and the calls of its stages."""

    config: Config

    @classmethod
    def make(cls, name: str, models: Path, tasks: Path, changes: dict[str, Any]) -> Evolution:
        """Three experts and three tasks in a small grid, one child a generation; `changes` are merged over it."""
        tree: dict[str, Any] = {
            "name": name,
            "seed": 7,
            "models": {
                "base": str(models / "base"),
                "experts": {e: {"path": str(models / e), "task": t} for e, t in zip(EXPERTS, TASKS, strict=True)},
                "shard_size": "100KB",
            },
            "tasks": {t: _task(tasks, t, index) for index, t in enumerate(TASKS)},
            "evaluation": {"engine": "transformers", "dtype": "float32", "allow_flat_tasks": True, "threads": 1},
            "method": {
                "generations": 4,
                "grid": {"bins": 4},
                "crossover": {"sigma": 0.3},
                "baselines": {"task_arithmetic": []},
            },
            "place": {"threads": 1, "workers": 1, "device": "cpu", "cache_size": "10MB", "fused": True},
        }
        return cls(configuration.parse(_merged(tree, changes), "test"))

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def tree(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", by_alias=True)

    @property
    def profile(self) -> str:
        return keep_place(self.store, self.config.place)

    @property
    def fused(self) -> bool:
        return self.config.place.fused is True and not load_config(self.store).in_span

    @property
    def store(self) -> Store:
        return Store.connect(Settings.from_environment(), self.name)

    @property
    def tasks(self) -> str:
        return json.dumps(list(self.config.search_tasks))

    def seed(self, tree: dict[str, Any] | None = None) -> None:
        """`tree`: of another configuration."""
        from components.seed.stage import run

        given = {key: value for key, value in (tree or self.tree).items() if key != "place"}
        run(self.name, keep(self.store, self.name, given), self.profile)

    def evaluate(self, models: list[str], split: str = "search", tasks: list[str] | None = None) -> None:
        from components.evaluate.stage import run

        run(self.name, json.dumps(models), json.dumps(tasks) if tasks else self.tasks, split, self.profile)

    def basis(self) -> None:
        from components.basis.stage import run

        run(self.name, self.profile)

    def select(self, generation: int = -1) -> list[str]:
        from components.select_parents.stage import run

        return items.for_loop(run(self.name, generation))

    def merge(self, *loop: str) -> None:
        from components.merge.stage import run

        run(self.name, loop, self.profile, fused=self.fused)

    def mutate(self, *loop: str) -> None:
        from components.mutate.stage import run

        run(self.name, loop, self.profile)

    def update(self, generation: int) -> None:
        from components.update_archives.stage import run

        run(self.name, generation, self.profile)

    def aggregate(self) -> None:
        from components.aggregate.stage import run

        run(self.name, self.profile)

    def choose(self) -> list[str]:
        from components.aggregate.stage import choose

        return choose(self.name, self.profile)

    def finalising(self) -> None:
        """The finalising pipeline's stages."""
        self.aggregate()
        models = compared(load_config(self.store), current(self.store)[1], None)
        if self.config.chosen:
            self.evaluate(models)
            models = self.choose()
        self.evaluate(models)
        self.evaluate(models, "test", list(self.config.tasks))

    def build_final(self) -> None:
        """Aggregate, score the aggregate, make the better of it and the best single model the final one."""
        self.aggregate()
        self.evaluate(["aggregated"])
        self.choose()

    def seeding(self) -> None:
        """The seeding pipeline's stages."""
        self.seed()
        config = load_config(self.store)
        if config.in_span:
            self.basis()
        self.evaluate(["base", *(f"expert-{name}" for name in self.config.models.experts), *config.extracted])
        self.update(-1)

    def generation(self, number: int = -1) -> list[str]:
        """A generation's stages; the ids of its children."""
        loop = self.select(number)
        self.merge(*loop)
        if not self.fused:
            self.mutate(*loop)
        children = [json.loads(item)["child"] for item in loop]
        self.evaluate(children)
        self.update(json.loads(loop[0])["generation"])
        return children


def _task(folder: Path, name: str, index: int) -> dict[str, Any]:
    return {
        "class": f"{folder / 'letters.py'}:Letters",
        "data": str(folder / f"{name}.json"),
        "settings": {"low": 20 * index, "high": 20 * index + 50},
        "generation": {"max_tokens": 4},
        "split": {"share": 0.5, "seed": 1},
    }


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = dict(tree)
    for key, value in changes.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def write_tasks(folder: Path, plugin: Path) -> Path:
    """Sixteen items a task."""
    shutil.copy(plugin, folder / "letters.py")
    for name in TASKS:
        items_ = [{"id": f"{'xy'[i % 2]}{i:02d}", "prompt": f"{name} {i * 37 % 101}"} for i in range(16)]
        (folder / f"{name}.json").write_text(json.dumps(items_))
    return folder


def write_models(folder: Path, head_dim: int = 8) -> Path:
    """The base and its experts as Hugging Face folders: 2 layers, width 32, byte vocabulary, 143 kB each.

    vLLM's attention on a CPU has no heads smaller than 32.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for index, name in enumerate(("base", *EXPERTS)):
        noise = torch.Generator().manual_seed(index)
        if index:
            model.load_state_dict({k: v + 0.1 * torch.randn(v.shape, generator=noise) for k, v in start.items()})
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


RANKS = {"a": 4, "b": 3, "c": 2}


def write_adapters(models: Path, folder: Path) -> Path:
    """A LoRA adapter an expert, of ranks 4, 3 and 2, and the base beside them."""
    import torch

    from cycleqd.weights.checkpoint import open_checkpoint
    from cycleqd.weights.local import LocalSink, LocalSource
    from cycleqd.weights.plain_adapter import write_adapter

    base = open_checkpoint(LocalSource(models / "base"))
    matrices = {name: t.shape for name, t in base.tensors.items() if "layers" in name and len(t.shape) == 2}
    (folder / "base").symlink_to(models / "base")
    for index, name in enumerate(EXPERTS):
        noise = torch.Generator().manual_seed(100 + index)
        factors = {
            matrix: (torch.randn(out, RANKS[name], generator=noise), 0.1 * torch.randn(RANKS[name], n, generator=noise))
            for matrix, (out, n) in matrices.items()
            if name != "c" or "self_attn" in matrix  # different targets
        }
        write_adapter(LocalSink(folder / name), factors, "base")
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE
    return made
