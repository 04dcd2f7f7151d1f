"""The client of Kubeflow Pipelines against an HTTP server that speaks its REST (a real one: tests/cluster)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import ConflictError, CycleQDError, InvalidInputError, UnavailableError
from cycleqd.run.decisions import Position
from cycleqd.run.driver import Driver
from cycleqd.run.kubeflow import client as kubeflow
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.run.kubeflow.client import Kubeflow, MissingError
from cycleqd.run.kubeflow.runs import Runs, Steps
from cycleqd.run.steps import Step, generation_step
from cycleqd.storage.objects import Store
from pipelines.definitions import write
from tests.pipelines.configs import two_tasks
from tests.run.kfp_server import Backend, encrypted, kubeconfig, serving

GENERATION = Step("generation", 3, 1)
NAME = "golden-generation-000003"
_VARIABLES = ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_UI_ENDPOINT")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    for name in (*_VARIABLES, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    state = Backend()
    with serving(state) as url:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", url)
        yield state


@pytest.fixture
def steps(backend: Backend, store: Store) -> Steps:
    """Starts runs of an evolution of which S3 knows nothing."""
    config = two_tasks(runner="kubeflow")
    return Steps(config, Kubeflow(config.place), store, lambda: config)


def runs(**place: Any) -> Runs:
    config = two_tasks(runner="kubeflow", **place)
    return Runs(config, Kubeflow(config.place))


def connect(**place: Any) -> Kubeflow:
    return Kubeflow(two_tasks(runner="kubeflow", **place).place)


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
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-f]+(-dirty)?)? [0-9a-f]{12}", version["name"])
    assert version["pipeline_spec"]["pipelineInfo"]["name"] == "cycleqd-generation"
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
    known.retry(known.resolve(NAME))
    backend.report(run, "FAILED")
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


def test_multi_user_kubeflow_is_told_the_namespace(backend: Backend, store: Store) -> None:
    backend.multi_user = True
    config = two_tasks(runner="kubeflow", namespace="team")
    Steps(config, Kubeflow(config.place), store, lambda: config).start(GENERATION)
    assert [one["namespace"] for one in backend.experiments.values()] == ["team"]
    assert [one["namespace"] for one in backend.pipelines.values()] == ["team"]
    with pytest.raises(InvalidInputError, match=r"does not allow this in namespace 'kubeflow' .*place\.namespace"):
        runs().runs([GENERATION.name])


def test_single_user_kubeflow_is_told_none(backend: Backend, steps: Steps) -> None:
    steps.start(GENERATION)
    assert [one["namespace"] for one in backend.experiments.values()] == [""]


def test_a_token_comes_from_the_environment_or_a_file_that_is_read_again(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.token = "first"
    with pytest.raises(InvalidInputError, match=r"does not accept the credentials .*KF_PIPELINES_TOKEN"):
        connect()
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "first")
    assert connect().version == "2.17.0"
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    client = connect()
    backend.token = "second"
    file.write_text("second\n")
    assert client.find_experiment("golden") is None


def test_the_place_beats_the_environment(backend: Backend) -> None:
    with serving(Backend(tag_name="2.16.1")) as url:
        assert connect(endpoint=f"{url}/").version == "2.16.1"
        assert connect(endpoint=url).url("run-1") == f"{url}/#/runs/details/run-1"


def test_pages_are_where_the_user_interface_is(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline/")
    assert connect().url("run-1") == "https://kubeflow.example/pipeline/#/runs/details/run-1"


@pytest.mark.parametrize("version", ["1.8.5", "v0.5"])
def test_version_one_is_refused(backend: Backend, version: str) -> None:
    backend.tag_name = version
    with pytest.raises(InvalidInputError, match=f"is Kubeflow Pipelines {version}; version 2 is needed"):
        connect()


def test_another_server_is_refused(backend: Backend) -> None:
    backend.faults = [("GET /apis/v2beta1/healthz", "404")]
    with pytest.raises(InvalidInputError, match="answers, but not as the API of Kubeflow Pipelines 2"):
        connect()


@pytest.mark.parametrize(
    ("endpoint", "kind", "words"),
    [
        ("http://127.0.0.1:9", UnavailableError, r"does not answer at http://127.0.0.1:9 .*KF_PIPELINES_ENDPOINT"),
        ("127.0.0.1:9", InvalidInputError, "begin it with http:// or https://"),
        ("http://me:hidden@127.0.0.1:9", InvalidInputError, "holds credentials; leave them out"),
    ],
)
def test_an_endpoint_that_leads_nowhere_is_one_sentence(
    endpoint: str, kind: type[CycleQDError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", endpoint)
    with pytest.raises(kind, match=words) as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_a_certificate_that_nobody_vouches_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with encrypted(Backend(), tmp_path) as (url, authority):
        with pytest.raises(UnavailableError, match=r"place\.tls_ca"):
            connect(endpoint=url)
        assert connect(endpoint=url, tls_ca=str(authority)).version == "2.17.0"


def test_tls_to_a_server_without_it_is_said(backend: Backend) -> None:
    with serving(backend) as url, pytest.raises(UnavailableError, match="does not speak TLS; begin the endpoint with"):
        connect(endpoint=url.replace("http:", "https:"))


def test_without_an_endpoint_the_kubeconfig_leads_to_the_server(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match="no address of Kubeflow Pipelines is known"):
        connect()
    with serving(backend) as url:
        (tmp_path / "config").write_text(kubeconfig(url))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        assert connect().version == "2.17.0"
        assert connect().find_experiment("golden") is None
    asked = [call.partition("/proxy")[2] for call in backend.calls if "/services/ml-pipeline:http/proxy/" in call]
    assert asked[-1] == "/apis/v2beta1/experiments" and len(asked) == len(backend.calls)


def test_an_outage_between_decision_and_act_is_survived(backend: Backend, steps: Steps) -> None:
    """The first POST of a run is lost, the answer to the second one is, too: one run all the same."""
    backend.faults = [("POST /apis/v2beta1/runs", "reset"), ("POST /apis/v2beta1/runs", "after reset")]
    ended: list[object] = []
    backend.ends = ended.append
    assert len(drive(steps, lambda: bool(ended))) == 2
    assert len(backend.runs) == 1


def test_runs_of_several_generations_start_at_the_same_places_after_any_restart() -> None:
    config = two_tasks(generations_per_run=500)
    assert generation_step(config, 0) == generation_step(config, 499) == Step("generation", 0, 500)
    assert generation_step(config, 1100) == Step("generation", 1000, 200)
    assert generation_step(config, 1100).name == "generations-001000-001199"
