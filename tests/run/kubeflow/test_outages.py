"""A server of Kubeflow Pipelines that is away, slow, or asked by several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import UnavailableError
from cycleqd.run.decisions import Position
from cycleqd.run.driver import Driver
from cycleqd.run.kubeflow import client as kubeflow
from cycleqd.run.kubeflow.runs import Steps
from pipelines.definitions import write
from tests.pipelines.configs import two_tasks
from tests.run.kfp_backend import Backend
from tests.run.kubeflow.golden import GENERATION, NAME, connect


def drive(steps: Steps, done: Callable[[], bool], outage: float = 60) -> list[str]:
    """Drive until all is done; the warnings."""
    warnings: list[str] = []

    def position() -> Position:
        return Position(None if done() else GENERATION, None)

    Driver(steps, position, warned=warnings.append, sleep=lambda seconds: None, outage=outage).drive()
    return warnings


@pytest.mark.parametrize("fault", ["503", "reset", "500", "slow"])
def test_a_server_that_is_away_for_a_while_is_waited_for(
    backend: Backend, steps: Steps, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeflow, "_TIMEOUT", (1, 0.5))
    run = backend.add_run(NAME, "RUNNING", "RUNNING", "SUCCEEDED")
    backend.faults = [("GET /apis/v2beta1/runs/", fault)] * 5
    assert len(drive(steps, lambda: run["state"] == "SUCCEEDED")) == 1
    assert list(backend.runs) == [run["run_id"]] and backend.faults == [] and backend.posts() == []


def test_a_server_that_stays_away_ends_the_driver(backend: Backend, steps: Steps) -> None:
    backend.add_run(NAME, "RUNNING")
    backend.faults = [("GET /apis/v2beta1/runs", "503")] * 30
    with pytest.raises(UnavailableError, match=r"answers 503 \(.*the database is away\); look at its ml-pipeline"):
        drive(steps, lambda: False, outage=10)


def test_a_run_whose_making_was_not_answered_is_found(backend: Backend, steps: Steps) -> None:
    """The line breaks after the server has made the run: the next look finds it, and no other is made."""
    backend.faults = [("POST /apis/v2beta1/runs", "after reset")]
    with pytest.raises(UnavailableError):
        steps.start(GENERATION)
    assert [run.name for run in steps.runs([GENERATION.name])] == [GENERATION.name]
    assert len(backend.runs) == 1


def test_posts_are_never_sent_twice(backend: Backend, steps: Steps) -> None:
    backend.faults = [("POST /apis/v2beta1/runs", "500")]
    with pytest.raises(UnavailableError, match="the database is away"):
        steps.start(GENERATION)
    assert backend.posts().count("POST /apis/v2beta1/runs") == 1


def test_an_outage_between_decision_and_act_is_survived(backend: Backend, steps: Steps) -> None:
    """The first POST of a run is lost, the answer to the second one is, too: one run all the same."""
    backend.faults = [("POST /apis/v2beta1/runs", "reset"), ("POST /apis/v2beta1/runs", "after reset")]
    ended: list[object] = []
    backend.ends = ended.append
    assert len(drive(steps, lambda: bool(ended))) == 2
    assert len(backend.runs) == 1


def test_drivers_that_start_at_once_share_experiment_pipeline_and_version(backend: Backend, tmp_path: Path) -> None:
    package, failures = tmp_path / "pipeline.yaml", list[Exception]()
    write(two_tasks(runner="kubeflow"), "generation", 1, package)

    def begin() -> None:
        try:
            connect().version_of("golden-generation", "f" * 64, package)
            connect().experiment("golden")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(backend.experiments) == len(backend.pipelines) == len(backend.versions) == 1
