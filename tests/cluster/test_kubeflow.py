"""The tiny evolution on a real Kubeflow Pipelines, by the real program.

CYCLEQD_CLUSTER_PROFILE names a profile file (endpoint, namespace, images, bucket …). S3 and MLflow must be reachable
from here as AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI say, with keys in the environment: by port-forwards, for instance.
Tests run in the order of this file; they take about half an hour on two cores.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_head
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.run.world import make_world

PROFILE = "CYCLEQD_CLUSTER_PROFILE"
NEEDED = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI")
PATIENCE = 1800.0
pytestmark = pytest.mark.timeout(3 * 3600)


@dataclass(frozen=True)
class Evolution:
    """An evolution of its own name in the profile's bucket."""

    config: Path
    store: Store

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cycleqd.cli", *arguments]
        files = ["-c", str(self.config), "--profile", str(Path(os.environ[PROFILE]).resolve())]
        return subprocess.Popen([*command, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def call(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=2 * 3600)
        assert process.returncode == code, f"{arguments}: exit code {process.returncode}\n{out}\n{err}"
        return err if code else out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.call(*arguments, "--json"))

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """Runs by name, the newest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.json("runs", "--limit", "0"):
            found.setdefault(run["name"], []).append(run)
        return found

    def state(self, name: str) -> str:
        found = self.runs().get(name)
        return found[0]["state"] if found else ""

    def snapshot(self) -> int:
        head = find_head(self.store)
        return -1 if head is None else head.snapshot


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:.0f} s"
        time.sleep(5)


def make(folder: Path, generations: int) -> Evolution:
    missing = [name for name in (PROFILE, *NEEDED) if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster: set {' and '.join(missing)}")
    name = f"cluster-{secrets.token_hex(4)}"
    place = {"services": "external", "group": "generation", "threads": 1, "workers": 1, "retries": 0}
    path = make_world(folder, name=name, method={"generations": generations}, place=place)
    tree = yaml.safe_load(path.read_text())
    tree["place"] = place  # the rest is the profile's to say
    path.write_text(yaml.safe_dump(tree))
    bucket = load(path, Path(os.environ[PROFILE])).place.bucket
    settings = Settings.from_environment({**os.environ, "CYCLEQD_BUCKET": bucket})
    return Evolution(path, Store.connect(settings, name))


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evolution]:
    """Submitted from local files, then driven to its end by a second driver, the first one being killed."""
    made = make(tmp_path_factory.mktemp("driven"), generations=2)
    first = made.json("submit")
    assert first["action"] == "started" and first["step"] == "seeding"
    assert made.store.list(layout.SOURCES), "what lies here is brought to S3 for seeding"
    again = made.json("submit")
    assert again["action"] == "in flight" and again["run"] == first["run"]
    killed = made.start("drive")
    wait_for(lambda: made.state("generation-000000") == "RUNNING")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    interrupted = made.start("drive")
    time.sleep(20)
    assert made.state("generation-000000") in ("RUNNING", "SUCCEEDED")
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "goes on" in err
    made.call("drive")
    yield made
    made.call("cancel")


def test_every_step_has_one_run_however_many_drivers_there_were(driven: Evolution) -> None:
    found = {name: [run["state"] for run in runs] for name, runs in driven.runs().items()}
    steps = ("seeding", "generation-000000", "generation-000001", "finalising")
    assert found == {name: ["SUCCEEDED"] for name in steps}
    assert driven.snapshot() == 2
    assert driven.store.exists(layout.result(layout.evaluation("final", "two", "test")))
    assert driven.store.list(layout.SOURCES) == {}


def test_a_complete_evolution_is_left_alone(driven: Evolution) -> None:
    assert driven.json("submit")["action"] == "complete"
    driven.call("drive")
    assert all(len(runs) == 1 for runs in driven.runs().values())


def test_logs_name_tasks_and_leave_kfps_own_pods_out(driven: Evolution) -> None:
    pods = driven.json("logs", "generation-000001")
    assert {"select-parents", "merge", "evaluate-models", "update-archives"} <= {pod["task"] for pod in pods}
    assert len(driven.json("logs", "generation-000001", "--drivers")) > len(pods)
    (merge,) = driven.json("logs", "generation-000001", "--task", "merge")
    assert merge["child"] == "g000001-c00" and merge["phase"] == "Succeeded"


def test_the_chain_from_the_final_model_back_holds(driven: Evolution) -> None:
    driven.call("audit", "final")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evolution]:
    """Seeded; then a model that the first generation needs is away, so that its run fails."""
    made = make(tmp_path_factory.mktemp("failing"), generations=4)
    made.call("submit")
    wait_for(lambda: made.state("seeding") == "SUCCEEDED")
    yield made
    made.call("unschedule")
    made.call("cancel")


def test_what_a_task_refuses_stops_drive_and_its_run_is_retried_in_place(failing: Evolution) -> None:
    checkpoint = layout.checkpoint("base")
    away = {key: failing.store.get(key) for key in failing.store.list(checkpoint) if key.endswith(".safetensors")}
    failing.store.delete(away)
    process = failing.start("drive")
    _, err = process.communicate(timeout=2 * 3600)
    assert process.returncode in (2, 3), err
    assert "is not repeated" in err and "safetensors" in err and "cycleqd retry generation-000000" in err
    (failed,) = failing.runs()["generation-000000"]
    assert failed["state"] == "FAILED"
    for key, data in away.items():
        failing.store.put(key, data)
    assert failing.json("retry", "generation-000000")["run"] == failed["run"]
    assert failing.state("generation-000000") in ("RUNNING", "PENDING", "SUCCEEDED")
    wait_for(lambda: failing.state("generation-000000") == "SUCCEEDED")
    assert [run["run"] for run in failing.runs()["generation-000000"]] == [failed["run"]]
    assert failing.snapshot() == 1


def test_a_cancelled_run_is_replaced(failing: Evolution) -> None:
    first = failing.json("submit")
    assert first["step"] == "generation-000001"
    wait_for(lambda: failing.state("generation-000001") == "RUNNING")
    failing.call("cancel", "generation-000001")
    wait_for(lambda: failing.state("generation-000001") in ("CANCELED", "FAILED"))
    second = failing.json("submit")
    assert second["action"] in ("started", "retried")
    wait_for(lambda: failing.state("generation-000001") == "SUCCEEDED")
    assert failing.snapshot() == 2


def test_a_schedule_runs_the_next_generation_until_it_is_removed(failing: Evolution) -> None:
    every = ("schedule", "--cron", "*/30 * * * * *")
    made = failing.json(*every)
    assert made["changed"] and not failing.json(*every)["changed"]
    wait_for(lambda: failing.snapshot() > 2)
    assert failing.json("unschedule")["removed"] == [made["schedule"]]
    wait_for(
        lambda: not any(run["state"] in ("PENDING", "RUNNING") for runs in failing.runs().values() for run in runs)
    )
    scheduled = [run for runs in failing.runs().values() for run in runs if run["scheduled"]]
    assert scheduled and scheduled[-1]["state"] == "SUCCEEDED"


def test_drive_ends_what_the_schedule_began(failing: Evolution) -> None:
    failing.call("drive")
    assert failing.snapshot() == 4
    assert failing.json("submit")["action"] == "complete"
