"""Scoring an evolution's models: children that are adapters together, the others one by one; engines of one's own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation import scoring
from cycleqd.evaluation.engines import Adapter
from cycleqd.evaluation.engines.transformers import TransformersEngine
from cycleqd.evaluation.records import read_transcripts
from cycleqd.evaluation.scoring import evaluate_all
from cycleqd.progress import no_bar
from cycleqd.run.audit import trace
from cycleqd.run.sources import bring
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from tests.adapters import merged, write_adapter
from tests.evolution import Evolution

Make = Callable[..., Evolution]
ECHO = Path(__file__).parents[2] / "examples/engines/echo.py"


def test_adapters_are_scored_together_and_checkpoints_one_by_one(
    evolution: Make, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts a and b stand for children that are cores; their scores are those of checkpoints with them merged in."""
    written = {
        f"expert-{name}": write_adapter(tmp_path / name, tiny_models / "base", seed) for seed, name in enumerate("ab")
    }
    checkpoints = {name: merged(tiny_models / "base", a, tmp_path / f"{name}-merged") for name, a in written.items()}
    other = evolution("merged", models={"experts": {n[-1]: {"path": str(p)} for n, p in checkpoints.items()}})
    other.seed()
    other.evaluate(["base", "expert-a", "expert-b"])

    evo = evolution()
    evo.seed()
    cores = {need_result(evo.store, layout.stage(name, "make"))["outputs"]["checkpoint"]["digest"] for name in written}
    monkeypatch.setattr(scoring, "is_core", lambda found: found.digest in cores)
    loads: list[str] = []
    load = TransformersEngine.load

    def counted(self: TransformersEngine, folder: Path, digest: str) -> None:
        loads.append(folder.name)
        load(self, folder, digest)

    monkeypatch.setattr(TransformersEngine, "load", counted)
    present: list[bool] = []

    @contextmanager
    def adapters(store: Store, models: Sequence[str], scratch: Path) -> Iterator[Mapping[str, Adapter]]:
        present.append(True)
        yield {model: written[model] for model in models}
        present.append(False)

    models = ["base", "expert-a", "expert-b", "expert-c"]
    settings, config = Settings.from_environment(), load_config(evo.store)
    how = (config, evo.config.place, models, config.search_tasks, "search")
    evaluate_all(settings, evo.store, *how, adapters=adapters)  # type: ignore[arg-type]
    assert present == [True, False]
    assert len(loads) == 3 and len(set(loads)) == 2  # the base for both adapters, again, where it is there; c
    for model in written:
        for task in config.search_tasks:
            assert read_transcripts(evo.store, model, task, "search") == read_transcripts(
                other.store, model, task, "search"
            )
    for task in config.search_tasks:
        for key in ("seconds", "sample_seconds"):
            assert evo.store.get_json(layout.run(layout.evaluation("expert-a", task, "search")))[key]


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
    for engine, sentence in (("llama", "there is no engine .llama.; there are"),
                             ("/nowhere/echo.py:Echo", "engine .* cannot be imported")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=sentence):
            evolution(evaluation={"engine": engine}).seed()
