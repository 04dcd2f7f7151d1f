"""Scoring an evolution's models: children that are adapters together, the others one by one; engines of one's own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.engines.transformers import TransformersEngine
from cycleqd.evaluation.records import read_transcripts
from cycleqd.progress import no_bar
from cycleqd.run.audit import trace
from cycleqd.run.sources import bring
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.results import need_result
from tests.adapters import merged, write_adapter
from tests.evolution import Evolution

Make = Callable[..., Evolution]
ECHO = Path(__file__).parents[2] / "examples/engines/echo.py"


def test_adapters_are_scored_together_and_score_as_merged_checkpoints(
    evolution: Make, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models / "base"
    written = {name: write_adapter(tmp_path / name, base, seed) for seed, name in enumerate("abc")}
    checkpoints = {name: merged(base, adapter, tmp_path / f"{name}-merged") for name, adapter in written.items()}
    dense = evolution("merged", models={"experts": {n: {"path": str(p)} for n, p in checkpoints.items()}})
    dense.seed()
    models = ["base", "expert-a", "expert-b", "expert-c"]
    dense.evaluate(models)

    spanned = evolution("span", models={"experts": {n: {"path": str(a.folder)} for n, a in written.items()}})
    spanned.seed()
    spanned.basis()
    loads: list[str] = []
    load = TransformersEngine.load

    def counted(self: TransformersEngine, folder: Path, digest: str) -> None:
        loads.append(digest)
        load(self, folder, digest)

    monkeypatch.setattr(TransformersEngine, "load", counted)
    spanned.evaluate(models)
    assert len(set(loads)) == 1  # the base, for itself and for all adapters
    for model, task in product(models, spanned.config.search_tasks):
        found = read_transcripts(spanned.store, model, task, "search")
        assert found == read_transcripts(dense.store, model, task, "search")
        run = spanned.store.get_json(layout.run(layout.evaluation(model, task, "search")))
        assert run["seconds"] and run["sample_seconds"]


def test_an_engine_of_ones_own_is_seeded_and_scores(evolution: Make, tmp_path: Path) -> None:
    file = Path(shutil.copy(ECHO, tmp_path))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    own = evolution(evaluation={"engine": f"{file}:Echo"})
    evo = Evolution(bring(own.config, own.store, no_bar))  # as on a cluster, where seeding reads the file from S3
    evo.seed()
    file.unlink()  # what was seeded counts, not the user's file
    evo.evaluate(["base"])
    body = need_result(evo.store, layout.evaluation("base", "one", "search"))
    assert body["inputs"]["evaluation"]["engine"] == f"engines/{digest}.py:Echo"
    assert body["outputs"]["engine"] == "echo"
    frozen = load_config(evo.store)
    assert frozen.frozen()["evaluation"]["engine"] == f"engines/{digest}.py:Echo"
    evo.evaluate([f"expert-{name}" for name in evo.config.models.experts])
    evo.update(-1)
    assert trace(evo.store, frozen, ["base"], pins=()).objects[f"engines/{digest}.py"] == digest


def test_an_engine_that_does_not_exist_is_refused_at_seeding(evolution: Make) -> None:
    for engine, sentence in (("llama", "there is no engine .llama. .*; there are"),
                             ("/nowhere/echo.py:Echo", "engine .* cannot be imported")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=sentence):
            evolution(evaluation={"engine": engine}).seed()
