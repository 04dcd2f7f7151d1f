"""Evolutions of each format, as they were kept: they open, and go on. tests/data/evolutions/make.py made them."""

from __future__ import annotations

import contextlib
import json
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import IntegrityError
from cycleqd.run.replay import difference
from cycleqd.storage import layout
from cycleqd.storage.client import connect_client
from cycleqd.storage.evolution import current, load_config, manifest
from cycleqd.storage.formats import decode
from cycleqd.storage.objects import Store
from cycleqd.storage.results import find_record
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from tests.run.conftest import start

KEPT = Path(__file__).parents[1] / "data" / "evolutions"
CHILDREN = ("g000000-c00", "g000001-c00")
Call = Callable[..., Any]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def kept(services: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """kept(name) → a store that holds the evolution, and the path of its configuration; MLflow is logged again."""
    folder = tmp_path_factory.mktemp("kept")
    bucket = f"kept-{secrets.token_hex(8)}"
    variables = {**services, "CYCLEQD_BUCKET": bucket, "CYCLEQD_CACHE": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        client = connect_client(Settings.from_environment())
        client.create_bucket(Bucket=bucket)

        def open_kept(name: str) -> tuple[Store, Path]:
            store, path = Store(client, bucket, name), folder / f"{name}.yaml"
            if not path.exists():
                with zipfile.ZipFile(KEPT / f"{name}.zip") as packed:
                    for key in packed.namelist():
                        store.put(key, packed.read(key))
                    (operator,) = [key for key in packed.namelist() if key.startswith("operators/")]
                    (folder / "dropout.py").write_bytes(packed.read(operator))
                log_again(Settings.from_environment(), store)
                tree = yaml.safe_load((KEPT / "evolution.yaml").read_text())
                tree |= {"name": name, "place": {**tree["place"], "bucket": bucket}}
                path.write_text(yaml.safe_dump(tree, sort_keys=False))
            return store, path

        yield open_kept
        client.delete_bucket(Bucket=bucket)


def log_again(settings: Settings, store: Store) -> None:
    """The runs of models and generations in a new MLflow, from the records in S3 alone."""
    for key in store.list(""):
        if key.endswith("/mlflow.json"):
            assert store.get_json(key)["runs"], key
            store.delete([key])
    unlogged.log(settings, store, load_config(store), unlogged.everything(store))


@pytest.fixture
def call(kept: Call) -> Call:
    """call("status", …) → what the command prints as JSON for the complete evolution."""
    _, path = kept("complete")

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "-c", str(path), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def test_every_record_is_whole(kept: Call) -> None:
    for name in ("complete", "interrupted"):
        store, _ = kept(name)
        for key in store.list(""):
            if key.endswith(("/result.json", "/plan.json")) and key != layout.FINAL_PLAN:
                assert find_record(store, key) is not None


def test_it_is_complete(call: Call, kept: Call) -> None:
    facts = call("status")
    assert facts["next"] is None and facts["generations"] == 2 and facts["evaluations"] == 2
    assert [len(archive["elites"]) > 0 for archive in call("archive")["archives"]] == [True, True]
    rows = {row["id"]: row["scores"] for row in call("models", "--limit", "0")}
    assert {"base", "expert-red", "expert-blue", *CHILDREN, "naive", "final"} <= set(rows)
    for line in current(kept("complete")[0])[1].history:
        assert rows[line.model.id] == dict(line.scores)


def test_its_family_tree_its_replies_and_its_audit(call: Call) -> None:
    family = call("lineage", CHILDREN[1])["models"]
    assert all(family[parent["id"]] for parent in family[CHILDREN[1]]["parents"])
    samples = call("samples", "final", "one", "--limit", "0")
    assert samples and {"passed", "wrong"} >= {sample["outcome"] for sample in samples}
    found = call("audit", "final")
    assert found["problems"] == []
    assert "tasks/one/plugin.py" in found["objects"]
    assert [key for key in found["objects"] if key.startswith("operators/")]


def test_its_report_and_its_comparison(call: Call, kept: Call, tmp_path: Path) -> None:
    kept("interrupted")
    page = Path(call("report", "--folder", str(tmp_path / "report"))["page"])
    assert current(kept("complete")[0])[1].digest in page.read_text()
    facts = call("compare", "complete", "interrupted")
    assert facts["complete"]["mutation"] == facts["interrupted"]["mutation"]


def test_its_models_are_exported_and_rebuilt(call: Call, kept: Call, tmp_path: Path) -> None:
    store, path = kept("complete")
    exported = call("export", "final", str(tmp_path / "final"))
    assert exported["digest"] == manifest(store, "final").digest
    if not difference(store, CHILDREN[0]):
        assert call("replay", CHILDREN[0])["same"]
    else:  # the bytes of decompositions are a machine's
        with contextlib.suppress(IntegrityError):
            CliRunner().invoke(app, ["replay", CHILDREN[0], "-c", str(path)], catch_exceptions=False)


def test_one_that_was_interrupted_goes_on_to_its_end(kept: Call, services: dict[str, str]) -> None:
    """Nothing that is recorded is done again: every record keeps its bytes."""
    store, path = kept("interrupted")
    before = {key: store.get(key) for key in store.list("") if "/checkpoint/" not in key}
    result = CliRunner().invoke(app, ["status", "-c", str(path), "--json"])
    (child,) = json.loads(result.stdout)["in_flight"]
    assert child == {"child": CHILDREN[1], "done": ["evaluations/one/search", "merge"]}
    process = start("run", "-c", str(path), "--json", **services)
    output, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    summary = json.loads(output)
    assert summary["generations"] == 2 and summary["evaluations"] == 2
    changing = ("HEAD.json", "mlflow.json")
    assert {key: store.get(key) for key in before if not key.endswith(changing)} == {
        key: data for key, data in before.items() if not key.endswith(changing)
    }
    assert store.exists(layout.result(layout.evaluation(CHILDREN[1], "two", "search")))
    assert find_record(store, layout.result(layout.stage("final", "make"))) is not None
    if not difference(store, CHILDREN[1]):
        other, _ = kept("complete")
        key = layout.snapshot(2)
        mine, theirs = (decode(key, each.get(key), key) for each in (store, other))  # written in different formats
        assert mine == theirs, "as if it had never been interrupted"
