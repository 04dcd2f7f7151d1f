"""The pipelines under KFP's own local runner: what it makes of them is what ours does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cycleqd.cli.session import connect
from cycleqd.run.local.services import running
from cycleqd.search.config import load
from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.run.conftest import Finished, content, start
from tests.run.world import make_world

BUCKET = "under-kfp"
PAGES = {"archives", "summary"}
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from kfp import local
from cycleqd.run.steps import Step, arguments, find_state
from cycleqd.search.config import load
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from pipelines.definitions import build

config = load(Path(sys.argv[1]))
store = Store.connect(Settings.from_environment(), config.name)
config = adopt(store, config)
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
for step in (Step("seeding"), Step("generation", 0, 1)):
    build(config, step.kind, step.count)(**arguments(config, store, step, find_state(store)))
"""


@pytest.mark.timeout(900)
def test_kfps_local_runner_makes_the_same_objects(finished: Finished, tmp_path: Path) -> None:
    same_under_kfp(finished.path, finished.session.environment, finished.content, tmp_path)


@pytest.mark.timeout(900)
def test_in_the_span_too(tmp_path: Path) -> None:
    path = make_world(tmp_path / "evolution", models={"rank": 4}, method={"generations": 1, "children": 2})
    with running(load(path).place) as environment:
        process = start("run", "-c", str(path), "--json")
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        session = connect(load(path), environment)
        same_under_kfp(path, session.environment, content(session.store), tmp_path)


def same_under_kfp(path: Path, services: Mapping[str, str], expected: Mapping[str, bytes], folder: Path) -> None:
    """Seeding and a generation by KFP's runner, in a bucket of their own: no object differs, and tasks have pages."""
    own = {"CYCLEQD_BUCKET": BUCKET, "CYCLEQD_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    own["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"  # the server has an experiment of this name
    own["PYTHONPATH"] = str(ROOT)
    environment = {**os.environ, **services, **own}
    settings = Settings.from_environment(environment)
    connect_client(settings).create_bucket(Bucket=BUCKET)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(folder / "root")],
        env=environment,
        cwd=folder,  # MLflow without a server writes artifacts below the current folder
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "cannot be shown" not in done.stdout + done.stderr
    pages = [file for file in (folder / "root").rglob("*") if file.name in PAGES]
    assert {page.name for page in pages} == PAGES
    assert any("g000000-c00" in page.read_text() for page in pages if page.name == "summary")
    made = content(Store.connect(settings, load(path).name))
    head = made.pop("HEAD.json")
    assert b'"snapshot":1' in head
    assert {"archives/000001.json", "generations/000000/plan.json"} < set(made)
    assert [key for key in made if made[key] != expected[key]] == []
