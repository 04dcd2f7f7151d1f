"""The pipelines under KFP's own local runner: what it makes of them is what ours does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd.search.config import load
from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.run.conftest import Finished, content

BUCKET = "under-kfp"
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from kfp import local
from cycleqd.run.steps import Step, arguments, find_state
from cycleqd.search.config import load
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from pipelines.definitions import build

config = load(Path(sys.argv[1]))
store = Store.connect(Settings.from_environment(), config.name)
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
for step in (Step("seeding"), Step("generation", 0, 1)):
    build(config, step.kind, step.count)(**arguments(config, step, find_state(store)))
"""


@pytest.mark.timeout(900)
def test_kfps_local_runner_makes_the_same_objects(finished: Finished, tmp_path: Path) -> None:
    own = {"CYCLEQD_BUCKET": BUCKET, "CYCLEQD_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    own["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"  # the server has an experiment of this name
    own["PYTHONPATH"] = str(ROOT)
    environment = {**os.environ, **finished.session.environment, **own}
    settings = Settings.from_environment(environment)
    connect_client(settings).create_bucket(Bucket=BUCKET)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(finished.path), str(tmp_path / "root")],
        env=environment,
        cwd=tmp_path,  # MLflow without a server writes artifacts below the current folder
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    made = content(Store.connect(settings, load(finished.path).name))
    head = made.pop("HEAD.json")
    assert b'"snapshot":1' in head
    assert {"archives/000001.json", "generations/000000/plan.json"} < set(made)
    assert [key for key in made if made[key] != finished.content[key]] == []
