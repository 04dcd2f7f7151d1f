"""Runs of steps on a server that answers as Kubeflow Pipelines does (a real one: tests/cluster)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.refusals import MissingError
from cycleqd.run.kubeflow.runs import Steps
from cycleqd.run.steps import Step, generation_step
from cycleqd.storage.objects import Store
from tests.pipelines.configs import two_tasks
from tests.run.kfp_backend import Backend
from tests.run.kubeflow.golden import GENERATION, NAME, runs


def test_a_step_is_a_run_of_an_uploaded_version_that_the_next_driver_finds(backend: Backend, steps: Steps) -> None:
    made = steps.start(GENERATION)
    body = backend.runs[made.id]
    assert body["display_name"] == NAME and made.name == GENERATION.name and made.live
    assert body["runtime_config"]["parameters"]["generation"] == 3
    assert body["service_account"] == "pipeline-runner"
    assert [experiment["display_name"] for experiment in backend.experiments.values()] == ["golden"]
    assert [one.id for one in runs().runs([GENERATION.name])] == [made.id]
    assert runs().runs(["generation-000004"]) == []


def test_pipelines_and_versions_are_uploaded_once(backend: Backend, steps: Steps) -> None:
    for number in (3, 4):
        steps.start(Step("generation", number, 1))
    assert [one["name"] for one in backend.pipelines.values()] == ["golden-generation"]
    (version,) = backend.versions.values()
    compiled = version["pipeline_spec"]["pipeline_spec"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-f]+(-dirty)?)? [0-9a-f]{12}", version["name"])
    assert compiled["pipelineInfo"]["name"] == "cycleqd-generation"
    other = two_tasks(runner="kubeflow", fused=True)
    Steps(other, Kubeflow(other.place), steps.store, lambda: other).start(GENERATION)
    assert len(backend.versions) == 2 and len(backend.pipelines) == 1
    references = [run["pipeline_version_reference"]["pipeline_version_id"] for run in backend.runs.values()]
    assert references[0] == references[1] != references[2]


def test_runs_have_the_service_account_of_the_place(backend: Backend, store: Store) -> None:
    config = two_tasks(runner="kubeflow", service_account="evolver")
    made = Steps(config, Kubeflow(config.place), store, lambda: config).start(GENERATION)
    assert backend.runs[made.id]["service_account"] == "evolver"


def test_lists_are_read_page_by_page(backend: Backend) -> None:
    backend.page = 2
    made = [backend.add_run(NAME, "FAILED")["run_id"] for _ in range(5)]
    backend.add_run("golden-generation-000004", "SUCCEEDED")
    assert {run.id for run in runs().runs([GENERATION.name])} == set(made)
    assert len(runs().all()) == 6 and len(runs().all(limit=3)) == 3


def test_archived_runs_are_out_of_sight(backend: Backend) -> None:
    backend.add_run(NAME, "SUCCEEDED", storage_state="ARCHIVED")
    assert runs().runs([GENERATION.name]) == []


def test_live_runs_of_a_schedule_are_seen(backend: Backend) -> None:
    for state in ("SUCCEEDED", "RUNNING"):
        backend.add_run(f"golden-schedule-{state}", state, recurring_run_id="schedule-1")
    (seen,) = runs().runs([GENERATION.name])
    assert seen.scheduled and seen.live


def test_waiting_ends_with_the_run_whatever_its_old_tasks_say(backend: Backend, steps: Steps) -> None:
    """Details keep failed attempts beside their successes; the run's state counts."""
    run, told = backend.add_run(NAME, "PENDING", "RUNNING", "SUCCEEDED"), list[str]()
    steps.follow = lambda task, event: told.append(task)
    steps.wait(steps.resolve(run["run_id"]))
    assert run["state"] == "SUCCEEDED" and "evaluate-child" in told


def test_a_run_that_vanishes_is_said(backend: Backend, steps: Steps) -> None:
    run = steps.resolve(backend.add_run(NAME, "RUNNING")["run_id"])
    backend.runs.clear()
    with pytest.raises(ConflictError, match="was deleted while it was watched"):
        steps.wait(run)


def test_a_retried_run_reads_failed_for_a_while(backend: Backend) -> None:
    backend.retried = ("FAILED", "FAILED", "FAILED", "RUNNING", "SUCCEEDED")
    run = backend.add_run(NAME, "FAILED")
    runs().retry(runs().resolve(GENERATION.name))
    assert run["state"] == "RUNNING"
    assert backend.posts() == [f"POST /apis/v2beta1/runs/{run['run_id']}:retry"]


def test_a_retry_that_does_not_take_is_said(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RETRY_SECONDS", 0.05)
    backend.retried = ("FAILED",)
    backend.add_run(NAME, "FAILED")
    with pytest.raises(ConflictError, match="is still FAILED"):
        runs().retry(runs().resolve(GENERATION.name))


def test_only_a_failed_run_is_retried(backend: Backend) -> None:
    backend.add_run(NAME, "RUNNING")
    with pytest.raises(ConflictError, match="is RUNNING; only one that FAILED"):
        runs().retry(runs().resolve(GENERATION.name))
    assert backend.posts() == []


def test_cancelling_what_has_ended_meanwhile_is_no_error(backend: Backend) -> None:
    live, ended = backend.add_run(NAME, "RUNNING"), backend.add_run("golden-seeding", "SUCCEEDED")
    known = runs()
    for run in (known.resolve(live["run_id"]), known.resolve(ended["run_id"])) * 2:
        known.cancel(run)
    assert live["state"] == "CANCELING" and ended["state"] == "SUCCEEDED"
    with pytest.raises(MissingError):
        known.cancel(replace(known.resolve(ended["run_id"]), id="gone"))


@pytest.mark.parametrize("reported", [True, False])
def test_a_run_that_was_terminated_reads_canceled_though_kubeflow_says_failed(backend: Backend, reported: bool) -> None:
    """By its history; and by what was seen, where it ended before its cancelling was reported."""
    backend.add_run(NAME, "RUNNING")
    known = runs()
    known.cancel(known.resolve(NAME))
    run = next(iter(backend.runs.values()))
    assert known.resolve(NAME).state == "CANCELING"
    backend.report(run, "FAILED")
    backend.states[run["run_id"]] = ["FAILED"]
    if not reported:
        run["state_history"] = [one for one in run["state_history"] if one["state"] != "CANCELING"]
    assert known.resolve(NAME).state == "CANCELED"
    assert runs().resolve(NAME).state == ("CANCELED" if reported else "FAILED"), "another process has not seen it"
    with pytest.raises(ConflictError, match=r"was cancelled; .* starts a new one"):
        known.retry(known.resolve(NAME))
    backend.retry(run)  # on Kubeflow's page
    backend.report(run, "RUNNING")
    backend.states[run["run_id"]] = ["RUNNING"]
    assert known.resolve(NAME).live
    backend.report(run, "FAILED")
    backend.states[run["run_id"]] = ["FAILED"]
    assert known.resolve(NAME).state == "FAILED", "it was retried since, and failed by itself"


def test_a_refused_retry_is_no_error_when_the_run_works_already(backend: Backend) -> None:
    run = backend.add_run(NAME, "FAILED")
    seen = runs().resolve(NAME)
    backend.retry(run)
    backend.poll(run), backend.poll(run), backend.poll(run)
    assert run["state"] == "RUNNING"
    runs().retry(seen)
    gone = replace(seen, id=backend.add_run(NAME, "RUNNING")["run_id"])
    backend.faults = [("POST /apis/v2beta1/runs/", "404")]
    backend.report(backend.runs[gone.id], "FAILED")
    backend.states[gone.id] = ["FAILED"]
    with pytest.raises(MissingError):
        runs().retry(gone)


def test_a_run_is_named_by_id_step_or_full_name(backend: Backend) -> None:
    old, new = backend.add_run(NAME, "FAILED"), backend.add_run(NAME, "RUNNING")
    assert runs().resolve(GENERATION.name).id == runs().resolve(NAME).id == new["run_id"]
    assert runs().resolve(old["run_id"]).state == "FAILED"
    foreign = backend.add_run("other-seeding", "RUNNING", experiment=backend.add_experiment("other"))
    for unknown in ("generation-000009", "nonsense", foreign["run_id"]):
        with pytest.raises(InvalidInputError, match=f"has no run '{unknown}'"):
            runs().resolve(unknown)


def test_runs_of_several_generations_start_at_the_same_places_after_any_restart() -> None:
    config = two_tasks(generations_per_run=500)
    assert generation_step(config, 0) == generation_step(config, 499) == Step("generation", 0, 500)
    assert generation_step(config, 1100) == Step("generation", 1000, 200)
    assert generation_step(config, 1100).name == "generations-001000-001199"


def test_steps_are_known_by_their_names() -> None:
    for step in (Step("seeding"), Step("generation", 3, 1), Step("generation", 1000, 200), Step("finalising")):
        assert Step.named(step.name) == step
    assert Step.named("schedule-1") is None and Step.named("generation-3-tiny") is None
