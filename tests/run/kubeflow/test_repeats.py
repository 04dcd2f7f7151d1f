"""What is repeated, and what hangs, on a server that does as Kubeflow Pipelines 2.17 does: it repeats no failed task,
and a retried run hangs where as many iterations of a loop had failed as its definition allows at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd.errors import ConflictError, EvaluationError, IntegrityError, UnavailableError
from cycleqd.run.decisions import Replace, Retry
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.storage import run_layout
from cycleqd.storage.failures import find_failure
from cycleqd.storage.objects import Store
from tests.run.kfp_backend import Backend
from tests.run.kfp_server import kubeconfig
from tests.run.kubeflow.golden import GENERATION, NAME, Driver, by_hand, earlier_release, failing, pod


@pytest.fixture(autouse=True)
def slowly(backend: Backend) -> None:
    """A retried run works for two polls."""
    backend.retried = ("FAILED", "FAILED", "RUNNING", "RUNNING", "SUCCEEDED")


def test_kubeflow_repeats_nothing_and_the_driver_does(backend: Backend, store: Store) -> None:
    """Two outages of a task's own, in one run; the third attempt succeeds, and leaves no record of a failure."""
    backend.ends = failing([UnavailableError("S3 is away"), UnavailableError("S3 is away"), None], store)
    driver = Driver(backend, store)
    (run,) = [f"{one}:retry" for one in ("run-0004",)]
    assert driver.drive() == ["runs", run, run]
    again = [action for action in driver.actions if isinstance(action, Retry)]
    assert [(one.run.retries, one.run.why) for one in again] == [(n, "merge g000003-c00: S3 is away") for n in (0, 1)]
    assert list(backend.runs) == ["run-0004"] and find_failure(store, "run-0004") is None


def test_the_share_of_repetitions_is_the_runs_and_no_new_driver_has_its_own(backend: Backend, store: Store) -> None:
    backend.ends = failing([UnavailableError("S3 is away")] * 9, store)
    for _ in range(3):
        with pytest.raises(ConflictError, match=r"failed 3 times: merge g000003-c00: S3 is away; read .cycleqd logs"):
            Driver(backend, store).drive()
    assert sum(call.endswith(":retry") for call in backend.posts()) == 2
    again = Driver(backend, store)
    by_hand(again)
    with pytest.raises(ConflictError, match="failed 3 times"):
        again.drive()
    assert sum(call.endswith(":retry") for call in backend.posts()) == 3


def test_a_driver_that_died_between_counting_and_calling_costs_nothing(backend: Backend, store: Store) -> None:
    backend.add_run(NAME, "FAILED", finished_at="2026-01-01T00:00:00Z")
    dead = Driver(backend, store).steps
    (run,) = dead.runs([GENERATION.name])
    assert dead.ledger.claim(run)
    (again,) = Driver(backend, store).steps.runs([GENERATION.name])
    assert again.claimed and again.retries == 0
    assert len(Driver(backend, store).drive()) == 1
    assert store.get_json(run_layout.repeats(GENERATION.name))["count"] == 1


def test_only_the_faster_of_two_drivers_retries(backend: Backend, store: Store) -> None:
    backend.add_run(NAME, "FAILED", finished_at="2026-01-01T00:00:00Z")
    fast, slow = Driver(backend, store).steps, Driver(backend, store).steps
    (seen,), (known,) = fast.runs([GENERATION.name]), slow.runs([GENERATION.name])
    fast.retry(seen)
    slow.retry(known)
    assert sum(call.endswith(":retry") for call in backend.posts()) == 1


def test_a_refusal_stops_the_driver_and_one_of_an_earlier_run_does_not(backend: Backend, store: Store) -> None:
    backend.ends = failing([EvaluationError("out of memory"), None], store)
    with pytest.raises(EvaluationError, match=r"merge g000003-c00: out of memory; correct that.*cycleqd retry"):
        Driver(backend, store).drive()
    (run,) = backend.runs.values()
    with pytest.raises(EvaluationError):
        Driver(backend, store).drive()
    assert not any(call.endswith(":retry") for call in backend.posts())
    run["storage_state"] = "ARCHIVED"  # somebody wants a new run of the step
    assert Driver(backend, store).drive()[-1] == "runs"
    assert find_failure(store, run["run_id"]) is not None, "that run's failure is still told, and counts for no other"


def test_a_record_that_was_altered_is_said(backend: Backend, store: Store) -> None:
    backend.add_run(NAME, "FAILED")
    store.put(run_layout.repeats(GENERATION.name), b'{"format": 1, "often": 7}')
    with pytest.raises(IntegrityError, match=r"generation-000003\.json is no record of a step's repetitions"):
        Driver(backend, store).drive()


@pytest.mark.parametrize("failed", [1, 2])
def test_a_run_that_hangs_after_its_retry_by_hand_is_archived_and_replaced(
    backend: Backend, store: Store, tmp_path: Path, failed: int
) -> None:
    """At two iterations a time: where one had failed it goes on; where two had, it has no pod ever again."""
    backend.failed_iterations = failed
    old = earlier_release(backend, tmp_path, "FAILED")
    driver = Driver(backend, store)
    by_hand(driver)
    posts = driver.drive()
    if failed == 1:
        assert posts == [] and old["state"] == "SUCCEEDED"
        return
    assert posts == [f"{old['run_id']}:{verb}" for verb in ("archive", "terminate")] + ["runs"]
    assert old["storage_state"] == "ARCHIVED"
    new = list(backend.runs.values())[-1]
    assert new["display_name"] == NAME and new["state"] == "SUCCEEDED"
    assert backend.loop_limit(old) == 2 and backend.loop_limit(new) is None, "what is compiled now cannot hang so"
    assert [type(action) for action in driver.actions].count(Replace) == 1 and driver.warnings == []


def test_a_new_driver_finds_a_run_that_hangs_and_no_run_that_was_archived(
    backend: Backend, store: Store, tmp_path: Path
) -> None:
    """The first one dies after the retry; a person's retry hangs as well as a driver's."""
    backend.failed_iterations = 2
    old = earlier_release(backend, tmp_path, "FAILED")
    first = Driver(backend, store)
    by_hand(first)
    assert old["state"] == "RUNNING"
    assert Driver(backend, store).drive() == [f"{old['run_id']}:archive", f"{old['run_id']}:terminate", "runs"]
    assert first.steps.resolve(GENERATION.name).id != old["run_id"]
    assert [run.id for run in first.steps.runs([GENERATION.name])] == [list(backend.runs)[-1]]


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown"])
def test_a_retried_run_with_a_pod_that_works_or_waits_is_left_alone(backend: Backend, store: Store, phase: str) -> None:
    backend.retried = ("RUNNING",) * 60 + ("SUCCEEDED",)
    run = backend.add_run(NAME, "FAILED")
    driver = Driver(backend, store)
    driver.steps.retry(driver.steps.runs([GENERATION.name])[0])
    backend.pods = [pod(run, phase), pod(run, "Failed")]
    assert driver.drive() == []
    assert run["state"] == "SUCCEEDED"


def test_a_first_run_without_a_pod_waits_for_a_quota_or_a_queue(backend: Backend, store: Store) -> None:
    run = backend.add_run(NAME, *["RUNNING"] * 60, "SUCCEEDED")
    assert Driver(backend, store).drive() == [] and run["state"] == "SUCCEEDED"


def test_where_pods_may_not_be_listed_the_list_of_tasks_must_do(backend: Backend, store: Store, tmp_path: Path) -> None:
    backend.forbidden = ("pods", "workflows")
    backend.failed_iterations = 2
    old = earlier_release(backend, tmp_path, "FAILED")
    driver = Driver(backend, store)
    by_hand(driver)
    assert driver.drive()[0] == f"{old['run_id']}:archive"
    (warning,) = driver.warnings
    assert "pods" in warning and "forbidden" in warning and "is judged by Kubeflow's list of its tasks" in warning


def test_without_pods_to_look_at_a_task_that_reads_running_counts(
    backend: Backend, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    backend.retried = ("RUNNING",) * 60 + ("SUCCEEDED",)
    run = backend.add_run(NAME, "FAILED")
    driver = Driver(backend, store)
    assert driver.drive() == [f"{run['run_id']}:retry"]
    assert len(driver.warnings) == 1 and "no Kubernetes cluster is known" in driver.warnings[0]


def test_a_kubernetes_that_does_not_answer_proves_nothing(
    backend: Backend, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig("http://127.0.0.1:9"))
    monkeypatch.setattr(cluster, "STUCK_SECONDS", 0.0)
    run = backend.add_run(NAME, "FAILED")
    driver = Driver(backend, store)
    assert driver.drive() == [f"{run['run_id']}:retry"] and driver.warnings == []
