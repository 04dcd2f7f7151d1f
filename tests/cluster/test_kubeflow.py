"""The tiny evolution on a real Kubeflow Pipelines (see tests/cluster/evolution.py for what that needs).

Tests run in the order of this file; they take about half an hour on two cores.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from cycleqd.storage import layout
from tests.cluster.evolution import Evolution, make, wait_for

pytestmark = pytest.mark.timeout(3 * 3600)


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
    assert len(driven.json("logs", "generation-000001", "--all")) > len(pods)
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
    assert all(pod["log"] for pod in failing.json("logs", "generation-000000", "--task", "merge"))
    assert failing.snapshot() == 1


def test_a_cancelled_run_is_replaced(failing: Evolution) -> None:
    first = failing.json("submit")
    assert first["step"] == "generation-000001"
    wait_for(lambda: failing.state("generation-000001") == "RUNNING")
    failing.call("cancel", "generation-000001")
    wait_for(lambda: failing.state("generation-000001") in ("CANCELED", "FAILED"))
    second = failing.json("submit")
    assert second["action"] == "started" and second["run"] != first["run"]
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
