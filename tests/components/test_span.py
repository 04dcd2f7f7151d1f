"""An evolution in the span of LoRA experts: its stages, called directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, opened_basis
from cycleqd.storage.evolution import load_config, manifest, model_ref
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result, read_result
from tests.evolution import EXPERTS, RANKS, Evolution, write_adapters

Make = Callable[..., Evolution]


@pytest.fixture(scope="session")
def tiny_adapters(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapters(tiny_models, tmp_path_factory.mktemp("adapters"))


def with_adapters(evolution: Make, adapters: Path, **changes: Any) -> Evolution:
    experts = {name: {"path": str(adapters / name)} for name in EXPERTS}
    return evolution("span", models={"experts": experts}, **changes)


def test_seeding_makes_the_basis_and_the_experts_cores(evolution: Make, tiny_adapters: Path) -> None:
    made = with_adapters(evolution, tiny_adapters)
    made.seed()
    made.basis()
    store = made.store
    assert load_config(store).models.weights == "span"
    assert sorted(manifest(store, "source-a").files) == ["adapter_config.json", "adapter_model.safetensors"]
    base, basis = model_ref(store, "base"), model_ref(store, layout.BASIS)
    experts = cores(store, [model_ref(store, f"expert-{name}") for name in EXPERTS])
    with opened_basis(store, Place()) as opened:
        q = "model.layers.0.self_attn.q_proj.weight"
        up = "model.layers.1.mlp.up_proj.weight"
        assert opened.shapes[q] == (sum(RANKS.values()),) * 2
        assert opened.shapes[up] == (RANKS["a"] + RANKS["b"],) * 2  # expert c leaves it alone
    for core in experts:
        assert (core.base, core.basis) == (base.digest, basis.digest)
        assert {matrix.dtype for matrix in core.matrices.values()} == {torch.float32}
    assert not experts[2].matrices[up].any()
    run = store.get_json(layout.run(layout.stage("expert-a", "make")))
    assert 0 <= run["difference_from_peft"] < 1e-4
    before = {key: store.get(key) for key in store.list("models")}
    made.basis()
    assert {key: store.get(key) for key in store.list("models")} == before


def test_what_the_experts_are_decides_and_is_frozen(evolution: Make, tiny_adapters: Path, tiny_models: Path) -> None:
    made = with_adapters(evolution, tiny_adapters)
    assert made.config.models.weights == "auto"
    assert adopt(made.store, made.config).models.weights == "span"
    assert adopt(evolution("other").store, evolution("other").config).models.weights == "dense"
    made.seed()
    for words in ({}, {"weights": "auto"}, {"weights": "span"}):
        same = with_adapters(evolution, tiny_adapters, models=words) if False else made
        assert adopt(same.store, _with(same.config, words)).models.weights == "span"
    with pytest.raises(ConflictError, match=r"models\.weights"):
        adopt(made.store, _with(made.config, {"weights": "dense"}))


def _with(config: Config, words: dict[str, Any]) -> Config:
    tree = config.model_dump(mode="json", by_alias=True)
    tree["models"] = {**tree["models"], **words}
    return Config.model_validate(tree)


@pytest.mark.parametrize(
    ("words", "full", "sentence"),
    [
        ({"weights": "dense"}, [], "models.weights is dense, but expert 'a', 'b', 'c' is a LoRA adapter"),
        ({}, ["b"], "expert 'b' is a full checkpoint, and models.weights is span: set models.rank"),
        ({"weights": "span"}, ["a", "b", "c"], "expert 'a', 'b', 'c' is a full checkpoint"),
    ],
)
def test_experts_of_another_kind_are_refused(
    evolution: Make, tiny_adapters: Path, tiny_models: Path, words: dict[str, Any], full: list[str], sentence: str
) -> None:
    made = with_adapters(evolution, tiny_adapters)
    experts = {
        name: {"path": str((tiny_models if name in full else tiny_adapters) / name), "task": task}
        for name, task in zip(EXPERTS, ("one", "two", "three"), strict=True)
    }
    with pytest.raises(InvalidInputError, match=sentence):
        adopt(made.store, _with(made.config, {**words, "experts": experts}))


def test_full_experts_are_extracted(evolution: Make, tiny_models: Path) -> None:
    made = evolution("extracted", models={"rank": 8})
    made.seed()
    made.basis()
    config = load_config(made.store)
    assert config.in_span and config.extracted == ("source-a", "source-b", "source-c")
    kept = need_result(made.store, layout.stage("adapter-a", "make"))["outputs"]["kept"]
    assert 0.3 < kept["total"] < 0.9 and set(kept["dropped"]) == {"norms", "embeddings", "heads"}
    assert len(kept["matrices"]) == 14
    assert "model.safetensors" in manifest(made.store, "source-a").files
    assert read_result(made.store, layout.stage("adapter-a", "make")) is not None
    assert json.dumps(ModelRef.from_json(model_ref(made.store, "expert-a").to_json()).id) == '"expert-a"'


def _contents(store: Store, folder: str = "") -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list(folder) if not key.endswith("run.json")}
