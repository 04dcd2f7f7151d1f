"""An evolution in the span that keeps what no adapter carries: mixed experts, scored by dense swaps."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.records import read_transcripts
from cycleqd.report.collect import collect
from cycleqd.run.audit import trace, verify
from cycleqd.run.replay import rebuild, stored, to_rebuild
from cycleqd.run.serving import wait_for_seeding
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.cores import cores
from cycleqd.storage.evolution import current, load_config, manifest, model_ref
from cycleqd.storage.family import family
from cycleqd.storage.making import write_full
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tracker import Tracker
from cycleqd.weights.local import LocalSink
from tests.conftest import new_bucket, reached
from tests.evolution import Evolution, write_adapters, write_models
from tests.weights.models import loaded

NORM, EMBEDDING, MATRIX = "model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="session")
def _kept(
    services: dict[str, str], tiny_models: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Evolution]:
    """A finished evolution of an adapter and two full experts, which are extracted at full rank."""
    adapters = write_adapters(tiny_models, tmp_path_factory.mktemp("adapters"))
    models = {"experts": {"a": {"path": str(adapters / "a")}}, "rank": 32, "keep_dense": True}
    changes = {"seed": 3, "models": models, "method": {"generations": 2, "children": 3, "grid": {"bins": 3}}}
    with pytest.MonkeyPatch.context() as patch:
        variables = new_bucket(services, tmp_path_factory.mktemp("kept"), patch)
        made = Evolution.make(f"kept-{variables['CYCLEQD_BUCKET']}", tiny_models, tiny_tasks, changes)
        made.seeding()
        made.generation()
        made.generation()
        made.build_final()
        made.evaluate(["base", "final", "naive", "source-b", "source-c", "expert-a", "expert-b", "expert-c"], "test")
    return variables, made


@pytest.fixture
def kept(_kept: tuple[dict[str, str], Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evolution:
    return reached(_kept, tmp_path, monkeypatch)


def children(made: Evolution) -> list[str]:
    return [line.model.id for line in current(made.store)[1].children]


def test_experts_name_their_parts_of_the_full_experts(kept: Evolution) -> None:
    store, config = kept.store, load_config(kept.store)
    assert config.extracted == ("source-b", "source-c")
    record = need_result(store, layout.stage("adapter-b", "make"))["outputs"]["kept"]
    assert record["total"] > 0.999 and set(record["dense"]) == {"norms", "embeddings", "heads"}
    assert "dropped" not in record
    for name, part in {"a": [0, 0], "b": [1, 0], "c": [0, 1]}.items():
        (core,) = cores(store, [model_ref(store, f"expert-{name}")])
        assert core.full == (model_ref(store, "source-b"), model_ref(store, "source-c"))
        assert {tuple(c.tolist()) for c in core.dense.values()} == {tuple(part)}
        assert {NORM, EMBEDDING, "lm_head.weight"} < set(core.dense) and MATRIX not in core.dense


def test_an_expert_that_changed_its_embeddings_alone_is_an_expert(
    evolution: Callable[..., Evolution], tiny_models: Path, tmp_path: Path
) -> None:
    changed = loaded(tiny_models / "base")
    changed[EMBEDDING] = changed[EMBEDDING] + 0.1
    shutil.copytree(tiny_models / "base", tmp_path / "c")
    save_file(changed, tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})
    made = evolution(
        "embeddings", models={"experts": {"c": {"path": str(tmp_path / "c")}}, "rank": 4, "keep_dense": True}
    )
    made.seed()
    made.basis()
    (core,) = cores(made.store, [model_ref(made.store, "expert-c")])
    assert not any(bool(matrix.any()) for matrix in core.matrices.values())
    write_full(made.store, Place(), "expert-c", core, LocalSink(tmp_path / "full"), 10**9)
    found = loaded(tmp_path / "full")
    assert all(torch.allclose(found[name], changed[name], rtol=0, atol=1e-6) for name in changed)


def test_an_expert_of_full_rank_has_the_replies_of_its_source(kept: Evolution) -> None:
    store = kept.store
    for name, task in product("bc", kept.config.search_tasks):
        source, expert = (read_transcripts(store, f"{kind}-{name}", task, "test") for kind in ("source", "expert"))
        assert [record["replies"] for record in source] == [record["replies"] for record in expert]
        base = read_transcripts(store, "base", task, "test")
        assert [record["replies"] for record in base] != [record["replies"] for record in expert]


def test_children_are_small_and_hold_the_sum_of_the_full_experts(
    kept: Evolution, tiny_models: Path, tmp_path: Path
) -> None:
    store = kept.store
    base, b, c = (loaded(tiny_models / name) for name in ("base", "b", "c"))
    mixed = 0
    for child in children(kept):
        recorded = manifest(store, child)
        assert recorded.is_core and not store.list(layout.merged(child))
        if not stored(store, child):
            continue
        (core,) = cores(store, [model_ref(store, child)])
        write_full(store, Place(), child, core, LocalSink(tmp_path / child), 10**9)
        found = loaded(tmp_path / child)
        for name in (NORM, EMBEDDING):
            x, y = core.dense[name].tolist()
            mixed += bool(x or y)
            assert torch.allclose(found[name], base[name] + x * (b[name] - base[name]) + y * (c[name] - base[name]))
        assert not torch.allclose(found[MATRIX], base[MATRIX])
    assert mixed
    assert all(store.list(layout.checkpoint(f"source-{name}")) for name in "abc")


def test_a_child_scored_again_has_the_same_replies(kept: Evolution, tmp_path: Path) -> None:
    store = kept.store
    child = next(model for model in children(kept) if stored(store, model))
    folder = layout.evaluation(child, "one", "search")
    before = {key: store.get(key) for key in store.list(folder) if not key.endswith("run.json")}
    part = tmp_path / "cache" / f"{manifest(store, child).digest}.7.part"  # as a killed task leaves it
    part.mkdir(parents=True)
    store.delete(list(store.list(folder)))
    kept.evaluate([child], tasks=["one"])
    assert {key: store.get(key) for key in before} == before
    assert (tmp_path / "cache" / manifest(store, child).digest).is_dir() and not part.exists()


def test_every_model_is_audited_rebuilt_and_reported(kept: Evolution, tmp_path: Path) -> None:
    store, config = kept.store, load_config(kept.store)
    found = trace(store, config, ["final", "naive", *children(kept)], pins=())
    assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    assert [key for key in found.objects if key.startswith(f"{layout.full('final')}/model")]
    (expert,) = (link for link in found.links if link.model == "expert-a")
    assert {"source-a", "source-b", "source-c", "basis", "base"} == set(expert.making.reads())
    for model in ("final", "naive", *children(kept)):
        names = to_rebuild(store, model, family(store, [model]))
        assert (
            rebuild(store, config, names, tmp_path / model, lambda done: None).digest == manifest(store, model).digest
        )
    assert {"expert-c", "source-c"} <= {row.id for row in collect(store).rows}


def test_the_final_model_is_a_full_checkpoint_for_those_who_load_it(kept: Evolution, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    store = kept.store
    made = need_result(store, layout.stage("final", "make"))["outputs"]
    assert set(made) == {"checkpoint", "full"} and not store.list(layout.adapter("final"))
    version = Tracker(Settings.from_environment()).client.get_model_version_by_alias(kept.name, "best")
    assert version.source == store.url(layout.full("final"))
    assert version.tags["cycleqd.digest"] == made["full"]["digest"]
    assert version.tags["cycleqd.digest.core"] == made["checkpoint"]["digest"]

    where = {"services": "external", "bucket": store.bucket, "folder": str(tmp_path / "folder")}
    tree = {**kept.tree, "place": {**kept.tree["place"], **where}}
    (tmp_path / "kept.yaml").write_text(yaml.safe_dump(tree))
    out, told = tmp_path / "out", ["-c", str(tmp_path / "kept.yaml")]
    for more in ([], ["--rank", "4"]):
        refused = CliRunner().invoke(app, ["export", "final", str(out), *more, *told])
        assert refused.exit_code != 0
        assert re.search(r"no adapter carries.*models\.keep_dense.*--merged", " ".join(refused.output.split()))
    exported = CliRunner().invoke(app, ["export", "final", str(out), "--merged", "--json", *told])
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["digest"] == made["full"]["digest"]
    AutoModelForCausalLM.from_pretrained(out)
    assert not torch.equal(loaded(out)[NORM], loaded(Path(kept.config.models.base))[NORM])


def test_no_server_scores_it(kept: Evolution) -> None:
    with pytest.raises(InvalidInputError, match="scored as full checkpoints, and a server has one base and adapters"):
        wait_for_seeding(kept.store, lambda said: None)


def test_vllm_scores_it_by_swaps_too(environment: dict[str, str], tiny_tasks: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: pip install --no-deps -r requirements/no-deps.txt")
    changes = {"models": {"rank": 32, "keep_dense": True}, "evaluation": {"engine": "vllm"}}
    name, models = f"kept-{environment['CYCLEQD_BUCKET']}", write_models(tmp_path / "models", head_dim=32)
    made = Evolution.make(name, models, tiny_tasks, changes)
    made.seed()
    made.basis()
    made.evaluate(["source-a", "expert-b", "source-b", "expert-a"], tasks=["one"])
    store = made.store
    replies = {
        model: [record["replies"] for record in read_transcripts(store, model, "one", "search")]
        for model in ("source-a", "expert-a", "source-b", "expert-b")
    }
    assert replies["expert-a"] == replies["source-a"] != replies["source-b"] == replies["expert-b"]
    engines = {need_result(store, layout.evaluation(m, "one", "search"))["outputs"]["engine"] for m in replies}
    assert engines == {"vllm"}


def test_running_everything_again_changes_nothing(kept: Evolution) -> None:
    store = kept.store
    before = {key: store.get(key) for key in store.list("")}
    kept.seed()
    kept.basis()
    loop = kept.select(1)
    kept.merge(*loop)
    kept.mutate(*loop)
    kept.evaluate([json.loads(item)["child"] for item in loop])
    kept.update(1)
    kept.aggregate()
    assert {key: store.get(key) for key in store.list("")} == before
