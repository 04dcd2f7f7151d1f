"""An evolution in the span of LoRA experts: its stages, called directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.report.collect import collect
from cycleqd.run.audit import trace, verify
from cycleqd.run.replay import rebuild, stored, to_rebuild
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, opened_basis
from cycleqd.storage.evolution import current, load_config, manifest, model_ref
from cycleqd.storage.family import family
from cycleqd.storage.frozen import adopt
from cycleqd.storage.making import write_full, write_peft
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tracker import Tracker
from cycleqd.weights.local import LocalSink
from cycleqd.weights.span import cut
from tests.conftest import new_bucket, reached
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
        assert adopt(made.store, _with(made.config, words)).models.weights == "span"
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
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        both = {made.store.get(f"{layout.checkpoint(model)}/{name}") for model in ("base", "adapter-a")}
        assert len(both) == 1 and name in manifest(made.store, "adapter-a").files


@pytest.fixture(scope="session")
def _spanned(
    services: dict[str, str],
    tiny_models: Path,
    tiny_adapters: Path,
    tiny_tasks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, str], Evolution]:
    """A finished evolution of two adapters and an expert that one was extracted from."""
    experts = {name: {"path": str(tiny_adapters / name)} for name in ("a", "b")}
    models = {"experts": {**experts, "c": {"path": str(tiny_models / "c")}}, "rank": 8}
    changes = {"seed": 3, "models": models, "method": {"generations": 2, "children": 3, "grid": {"bins": 3}}}
    with pytest.MonkeyPatch.context() as patch:
        variables = new_bucket(services, tmp_path_factory.mktemp("spanned"), patch)
        made = Evolution.make(f"spanned-{variables['CYCLEQD_BUCKET']}", tiny_models, tiny_tasks, changes)
        made.seeding()
        made.generation()
        made.generation()
        made.build_final()
        made.evaluate(["base", "final", "naive", "source-c", "expert-a", "expert-b", "expert-c"], "test")
    return variables, made


@pytest.fixture
def spanned(_spanned: tuple[dict[str, str], Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evolution:
    return reached(_spanned, tmp_path, monkeypatch)


def test_children_are_cores_and_what_nothing_needs_is_cleaned(spanned: Evolution) -> None:
    store, config = spanned.store, load_config(spanned.store)
    head, state = current(store)
    assert head.snapshot == 2 and state.evaluations == 6
    living = {line.model.id for line in states.alive(config, state)}
    for line in state.children:
        assert manifest(store, line.model.id).is_core
        assert not store.list(layout.merged(line.model.id))
        if line.model.id in living:
            assert stored(store, line.model.id)
    assert store.list(layout.checkpoint(layout.BASIS)) and manifest(store, "final").is_core


def test_every_model_is_audited_and_rebuilt(spanned: Evolution, tmp_path: Path) -> None:
    store, config = spanned.store, load_config(spanned.store)
    children = [line.model.id for line in current(store)[1].children]
    found = trace(store, config, ["final", "naive", *children], pins=())
    assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    assert f"{layout.adapter('final')}/adapter_model.safetensors" in found.objects
    assert {"base", "basis", "source-a", "source-c", "adapter-c"} <= {link.model for link in found.links}
    for model in ("final", "naive", *children):
        names = to_rebuild(store, model, family(store, [model]))
        made = rebuild(store, config, names, tmp_path / model, lambda done: None)
        assert made.digest == manifest(store, model).digest


def test_the_report_sets_the_full_expert_beside_the_extracted_one(spanned: Evolution) -> None:
    data = collect(spanned.store)
    assert {"expert-c", "source-c"} <= {row.id for row in data.rows}
    assert data.best_expert[0] in {"expert-a", "expert-b", "source-c"}
    assert "basis" in data.cost.seconds


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[5, 17, 40, 99]])).logits
    return found


def test_an_exported_adapter_is_the_merged_model(spanned: Evolution, tiny_models: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    store = spanned.store
    (core,) = cores(store, [model_ref(store, "final")])
    write_peft(store, Place(), core, LocalSink(tmp_path / "adapter"), "base", None)
    write_full(store, Place(), "final", core, LocalSink(tmp_path / "full"), 10**9)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "full"))
    base = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    unchanged = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    assert torch.allclose(adapted, merged, atol=1e-4) and not torch.allclose(unchanged, merged, atol=1e-2)
    stored = {name: store.get(f"{layout.adapter('final')}/{name}") for name in ("adapter_model.safetensors",)}
    assert stored["adapter_model.safetensors"] == (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    write_peft(store, Place(), core, LocalSink(tmp_path / "small"), "base", 2)
    error = cut(core, 2)
    assert 0 < error < 1
    assert json.loads((tmp_path / "small/adapter_config.json").read_text())["r"] == 2


def test_the_final_adapter_is_registered_in_mlflow(spanned: Evolution) -> None:
    client = Tracker(Settings.from_environment()).client
    version = client.get_model_version_by_alias(spanned.name, "best")
    made = need_result(spanned.store, layout.stage("final", "make"))["outputs"]
    assert version.source == spanned.store.url(layout.adapter("final"))
    assert version.tags["cycleqd.digest"] == made["adapter"]["digest"]
    assert version.tags["cycleqd.digest.core"] == made["checkpoint"]["digest"]
    assert version.tags["cycleqd.digest.base"] == model_ref(spanned.store, "base").digest
    spanned.aggregate()
    assert len(client.search_model_versions(f"name = '{spanned.name}'")) == 1


def test_running_everything_again_changes_nothing(spanned: Evolution) -> None:
    store = spanned.store
    before = {key: store.get(key) for key in store.list("")}
    spanned.seed()
    spanned.basis()
    for generation in range(2):
        loop = spanned.select(generation)
        spanned.merge(*loop)
        spanned.mutate(*loop)
        spanned.evaluate([json.loads(item)["child"] for item in loop])
        spanned.update(generation)
    assert {key: store.get(key) for key in store.list("")} == before
