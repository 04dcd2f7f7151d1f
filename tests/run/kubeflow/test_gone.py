"""Runs whose workflow was taken, by whatever: Kubeflow Pipelines believes them in flight for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cycleqd.run.decisions import Replace
from cycleqd.run.kubeflow import schedules
from cycleqd.storage.objects import Store
from tests.run.kfp_backend import Backend
from tests.run.kubeflow.golden import NAME, Driver, by_hand, runs


@pytest.fixture(autouse=True)
def seeding(backend: Backend) -> dict[str, Any]:
    """Another run, whose workflow shows that this Kubernetes is the server's."""
    return backend.add_run("golden-seeding", "FAILED")


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "CANCELING"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_run_without_a_workflow_is_archived_and_replaced(
    backend: Backend, store: Store, state: str, scheduled: bool
) -> None:
    more = {"recurring_run_id": "schedule-1"} if scheduled else {}
    run = backend.add_run(f"{NAME}-1" if scheduled else NAME, state, **more)
    backend.take(run)
    if scheduled and state == "CANCELING":
        return  # it is nobody's: not live, and no step's
    driver = Driver(backend, store)
    assert driver.drive() == [f"{run['run_id']}:{verb}" for verb in ("archive", "terminate")] + ["runs"]
    assert [type(one) for one in driver.actions].count(Replace) == 1 and driver.warnings == []
    assert list(backend.runs.values())[-1]["state"] == "SUCCEEDED"


def test_one_whose_workflow_is_taken_while_it_is_watched_is_replaced(backend: Backend, store: Store) -> None:
    run = backend.add_run(NAME, "RUNNING")
    driver = Driver(backend, store)
    driver.steps.follow = lambda task, event: backend.take(run) if run["run_id"] not in backend.taken else None
    assert driver.drive()[0] == f"{run['run_id']}:archive"


def test_submit_replaces_it_at_once(backend: Backend, store: Store) -> None:
    run = backend.add_run(NAME, "RUNNING")
    backend.take(run)
    _, started = Driver(backend, store).driver.submit()
    assert started is not None and started.id != run["run_id"] and started.name == "generation-000003"


def test_without_the_right_to_list_workflows_a_first_run_is_left_alone(backend: Backend, store: Store) -> None:
    backend.forbidden = ("workflows",)
    run = backend.add_run(NAME, *["RUNNING"] * 30, "SUCCEEDED")
    backend.taken.add(run["run_id"])
    assert Driver(backend, store).drive() == [] and run["state"] == "SUCCEEDED"


def test_a_kubernetes_that_may_be_another_clusters_proves_nothing(
    backend: Backend, store: Store, seeding: dict[str, Any]
) -> None:
    """A kubeconfig may lead elsewhere than the endpoint: there the namespace has no workflow that the server knows."""
    run = backend.add_run(NAME, *["RUNNING"] * 30, "SUCCEEDED")
    backend.taken |= {run["run_id"], seeding["run_id"]}
    assert Driver(backend, store).drive() == [] and run["state"] == "SUCCEEDED"


def test_a_run_that_waits_for_a_quota_or_a_queue_is_left_alone(backend: Backend, store: Store) -> None:
    """Its workflow is there, and no pod."""
    run = backend.add_run(NAME, *["RUNNING"] * 60, "SUCCEEDED")
    assert Driver(backend, store).drive() == [] and run["state"] == "SUCCEEDED"


def test_the_morning_after_a_retry_makes_the_workflow_again_and_the_run_goes_on(backend: Backend, store: Store) -> None:
    """On Kubeflow's own page, and by drive itself; where the retried run hangs it is replaced."""
    run = backend.add_run(NAME, "FAILED")
    backend.take(run)
    by_hand(Driver(backend, store))
    assert Driver(backend, store).drive() == [] and run["state"] == "SUCCEEDED"
    other = backend.add_run(NAME, "FAILED")
    run["storage_state"] = "ARCHIVED"
    backend.runs.pop(run["run_id"])
    backend.take(other)
    assert Driver(backend, store).drive() == [f"{other['run_id']}:retry"]


@pytest.fixture
def scheduled(backend: Backend, seeding: dict[str, Any]) -> dict[str, Any]:
    """A recurring run, and its run in flight."""
    experiment = seeding["experiment_id"]
    backend.schedules["schedule-1"] = {
        "recurring_run_id": "schedule-1",
        "display_name": "golden-schedule",
        "experiment_id": experiment,
        "status": "ENABLED",
        "mode": "ENABLE",
    }
    backend.add_run("golden-schedule-0", "SUCCEEDED", recurring_run_id="schedule-1")
    backend.add_run("golden-other-0", "RUNNING", recurring_run_id="schedule-2")
    states = ["RUNNING"] * 5 + ["SUCCEEDED"]
    return backend.add_run("golden-schedule-1", *states, recurring_run_id="schedule-1")


def retire(now: bool) -> list[str]:
    told: list[str] = []
    known = runs()
    found = known.kubeflow.schedules(known.experiment() or "", "golden-schedule")
    schedules.retire(known, found, now, lambda run: told.append(run.id))
    return told


def schedule_posts(backend: Backend) -> list[str]:
    return [call.replace("/apis/v2beta1/", "") for call in backend.posts()]


@pytest.mark.parametrize("now", [False, True])
def test_a_schedule_is_disabled_then_deleted_when_nothing_of_it_is_in_flight(
    backend: Backend, scheduled: dict[str, Any], monkeypatch: pytest.MonkeyPatch, now: bool
) -> None:
    seen: list[str] = []

    def pass_time(seconds: float) -> None:
        seen.append(backend.schedules["schedule-1"]["status"])
        backend.poll(scheduled)

    monkeypatch.setattr(schedules, "time", SimpleNamespace(sleep=pass_time))
    assert retire(now) == [scheduled["run_id"]], "the other schedule's run is not waited for"
    end = [f"POST runs/{scheduled['run_id']}:terminate"] if now else []
    assert schedule_posts(backend) == ["POST recurringruns/schedule-1:disable", *end, "DELETE recurringruns/schedule-1"]
    assert seen and set(seen) == {"DISABLED"} and backend.schedules == {}
    assert scheduled["state"] == ("FAILED" if now else "SUCCEEDED") and backend.taken == set()


def test_a_run_of_a_schedule_whose_workflow_is_gone_is_not_waited_for(
    backend: Backend, scheduled: dict[str, Any]
) -> None:
    backend.take(scheduled)
    assert retire(now=False) == [] and backend.schedules == {}


def test_deleting_a_schedule_as_the_first_version_did_takes_the_workflow_along(
    backend: Backend, store: Store, scheduled: dict[str, Any]
) -> None:
    """What older servers do, which know no orphans; drive then archives the run."""
    del backend.schedules["schedule-1"]
    backend.collect("schedule-1")
    backend.runs = {run: one for run, one in backend.runs.items() if one["state"] == "FAILED" or one is scheduled}
    assert Driver(backend, store).drive()[0] == f"{scheduled['run_id']}:archive"
