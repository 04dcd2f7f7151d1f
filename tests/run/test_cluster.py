"""The commands of a cluster, against a server that speaks KFP's and Kubernetes' REST, a real S3 store and a real MLflow
server. A run that succeeds has done its work: the real stages, called with the run's parameters."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import InvalidInputError
from cycleqd.run import decisions
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.run.steps import find_state
from cycleqd.search.config import load
from cycleqd.storage import layout, run_layout
from cycleqd.storage.evolution import current
from cycleqd.storage.failures import recorded
from cycleqd.storage.finalising import compared
from cycleqd.storage.frozen import frozen_bytes
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import look_up
from cycleqd.storage.settings import Settings
from tests.run.conftest import start
from tests.run.kfp_backend import Backend
from tests.run.kfp_server import leading_to, serving
from tests.run.world import make_world

PLACE = {"runner": "kubeflow", "services": "external", "group": "generation", "threads": 1, "workers": 1}


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cluster-world")).parent


@dataclass
class World:
    """A laptop's configuration of a tiny evolution, and a cluster."""

    config: Path
    backend: Backend
    store: Store
    variables: dict[str, str]
    seen: list[dict[str, Any]] = field(default_factory=list)

    def call(self, *arguments: str, code: int = 0, **more: str) -> tuple[str, str]:
        """Run a command to its end, in this process; what it printed, and said on standard error."""
        done = CliRunner().invoke(app, [*arguments, "-c", str(self.config)], env={**self.variables, **more})
        assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
        return done.stdout, done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Run a command as a process."""
        return start(*arguments, "-c", str(self.config), **self.variables)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.call(*arguments, "--json")[0])

    def work(self, run: dict[str, Any]) -> None:
        """What the pods of a run do, with the parameters that it was given."""
        self.seen.append(run)
        os.environ["KFP_RUN_ID"] = run["run_id"]
        try:
            self._work(run["runtime_config"]["parameters"])
        finally:
            del os.environ["KFP_RUN_ID"]

    def _work(self, given: dict[str, Any]) -> None:
        name, profile = given["evolution"], given["profile"]
        tasks = json.dumps(["one", "two"])
        if "config" in given:
            self._seed(given, name, tasks, profile)
        elif "generation" in given:
            self._generation(int(given["generation"]), name, tasks, profile)
        else:
            self._finalise(list(given["models"]), name, tasks, profile)

    def _seed(self, given: dict[str, Any], name: str, tasks: str, profile: str) -> None:
        from components.evaluate.stage import run as evaluate
        from components.seed.stage import run as seed
        from components.update_archives.stage import run as update

        seed(name, given["config"], profile)
        evaluate(name, json.dumps(["base", "expert-red", "expert-blue"]), tasks, "search", profile)
        update(name, -1, profile)

    def _generation(self, generation: int, name: str, tasks: str, profile: str) -> None:
        from components import items
        from components.evaluate.stage import run as evaluate
        from components.merge.stage import run as merge
        from components.mutate.stage import run as mutate
        from components.select_parents.stage import run as select
        from components.update_archives.stage import run as update

        loop = items.for_loop(select(name, generation))
        merge(name, loop, profile)
        mutate(name, loop, profile)
        evaluate(name, json.dumps([json.loads(item)["child"] for item in loop]), tasks, "search", profile)
        update(name, json.loads(loop[0])["generation"], profile)

    def _finalise(self, models: list[str], name: str, tasks: str, profile: str) -> None:
        from components.aggregate.stage import choose
        from components.aggregate.stage import run as aggregate
        from components.evaluate.stage import run as evaluate

        aggregate(name, profile)
        evaluate(name, json.dumps(models), tasks, "search", profile)
        for split in ("search", "test"):
            evaluate(name, json.dumps(choose(name, profile)), tasks, split, profile)


@pytest.fixture
def world(
    environment: dict[str, str], world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.05)
    tree = yaml.safe_load((world_folder / "cycleqd.yaml").read_text())
    tree["name"] = f"w-{environment['CYCLEQD_BUCKET']}"
    tree["place"] = {**PLACE, "bucket": environment["CYCLEQD_BUCKET"], "folder": str(tmp_path / "state")}
    tree["method"]["generations"] = 1
    path = world_folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    backend = Backend(
        secrets={"cycleqd-credentials": {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}},
        config_maps={"cycleqd-settings": {"AWS_ENDPOINT_URL": "x", "MLFLOW_TRACKING_URI": "y"}},
    )
    with serving(backend) as url:
        variables = {**environment, **leading_to(url, tmp_path)}
        store = Store.connect(Settings.from_environment(environment), tree["name"])
        made = World(path, backend, store, variables)
        backend.ends = made.work
        yield made
    path.unlink()


def names(world: World) -> list[str]:
    return [run["display_name"].removeprefix(f"{world.store.evolution}-") for run in world.backend.runs.values()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_from_a_laptop_to_the_final_model(world: World) -> None:
    """submit seeds from local files; drive adopts its run and goes on to the end; another drive does nothing."""
    first = world.json("submit")
    assert first["action"] == "started" and first["step"] == "seeding"
    assert first["url"].endswith(f"/#/runs/details/{first['run']}")
    sources = world.store.list(layout.SOURCES)
    assert {"sources/models/base/model.safetensors", "sources/tasks/one/data/words.json"} <= set(sources)
    assert world.json("submit")["action"] == "in flight"
    given = world.backend.runs[first["run"]]["runtime_config"]["parameters"]
    assert str(world.config.parent) not in json.dumps(look_up(world.store, given["config"])["models"])
    out, _ = world.call("drive", "--json")
    assert json.loads(out)["generations"] == 1, out
    assert names(world) == ["seeding", "generation-000000", "finalising"]
    assert world.store.list(layout.SOURCES) == {}, "what was brought is gone once HEAD is there"
    config = load(world.config)
    assert compared(config, current(world.store)[1], None)[-3:] == ["aggregated", "lambda-0.3", "lambda-0.6"]
    assert world.store.exists(layout.result(layout.evaluation("final", "two", "test")))
    before = world.backend.posts()
    assert "is complete" in world.call("submit")[0]
    world.call("drive")
    assert world.backend.posts() == before
    rows = world.json("runs")
    assert [row["name"] for row in rows] == ["finalising", "generation-000000", "seeding"]
    assert [row["generation"] for row in rows] == ["", "0", ""] and {row["state"] for row in rows} == {"SUCCEEDED"}
    assert "generation-000000" in world.call("runs")[0]


def test_sources_are_uploaded_once_and_follow_changes(world: World) -> None:
    world.backend.faults = [("POST /apis/v2beta1/runs", "reset")]
    world.call("submit", code=5)
    sources = world.store.list(layout.SOURCES)
    assert sources and world.backend.runs == {}
    world.store.put(f"{layout.SOURCES}/tasks/one/data/words.json", b"other bytes")
    world.store.put(f"{layout.SOURCES}/tasks/one/data/left-over.json", b"[]")
    client = world.store.client
    key = world.store.key(f"{layout.SOURCES}/models/base/model.safetensors")
    before = client.head_object(Bucket=world.store.bucket, Key=key)["LastModified"]
    world.call("submit")
    assert client.head_object(Bucket=world.store.bucket, Key=key)["LastModified"] == before
    assert world.store.list(layout.SOURCES) == sources
    words = (world.config.parent / "words.json").read_bytes()
    assert world.store.get(f"{layout.SOURCES}/tasks/one/data/words.json") == words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_drive_that_is_killed_leaves_the_run_going(world: World, number: signal.Signals) -> None:
    world.backend.scripts = [("RUNNING",)]
    process = world.start("drive")
    wait_for(lambda: any(call.startswith("GET /apis/v2beta1/runs/run-") for call in world.backend.calls))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    (run,) = world.backend.runs.values()
    assert run["state"] == "RUNNING" and not any("terminate" in call for call in world.backend.calls)
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert f"run seeding ({run['run_id']}) goes on" in err and "cycleqd drive -c" in err
    assert world.json("submit") | {"url": ""} == {
        "evolution": world.store.evolution,
        "action": "in flight",
        "step": "seeding",
        "run": run["run_id"],
        "url": "",
    }


def test_drive_repeats_a_run_that_fails_and_stops_at_what_a_stage_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a pod is lost; then the stage finds that what was brought for it is gone, which it would find again."""
    monkeypatch.setattr(decisions, "FIRST_PAUSE", 0.0)
    world.backend.scripts = [("RUNNING", "FAILED")]
    away: dict[str, bytes] = {}

    def lose(run: dict[str, Any]) -> None:
        if not away:
            key = f"{layout.SOURCES}/models/expert-red/config.json"
            away[key] = world.store.get(key)
            world.store.delete([key])
        world.work(run)

    world.backend.ends = lose
    refused = 2
    _, err = world.call("drive", code=refused)
    (run,) = world.backend.runs.values()
    again = "failed: task evaluate-child failed; what failed in it runs again in 0 s (1 of 2)"
    assert f"run seeding ({run['run_id']}) {again}" in err
    said = err.strip().splitlines()[-1]
    assert f"run seeding ({run['run_id']}) failed and is not repeated, which could not help: seed: " in said
    assert "config.json" in said and "`cycleqd retry seeding`, or drive with --fresh" in said and "Traceback" not in err
    retry = f"POST /apis/v2beta1/runs/{run['run_id']}:retry"
    for command in ("submit", "drive"):
        assert world.call(command, code=refused)[1].strip().splitlines()[-1] == said, "nothing has changed"
    assert [call for call in world.backend.posts() if call.endswith(":retry")] == [retry]
    for key, data in away.items():
        world.store.put(key, data)
    assert world.json("retry", "seeding")["run"] == run["run_id"]
    while world.backend.poll(run)["state"] != "SUCCEEDED":
        pass
    failures = world.store.list(run_layout.failures(run["run_id"]))
    assert failures == {}, "the seed task has superseded its record"
    assert world.json("submit")["step"] == "generation-000000"
    assert next(iter(world.backend.runs)) == run["run_id"] and len(world.backend.runs) == 2


def test_submit_retries_what_failed_once_a_call_and_not_more_often_than_drive(world: World) -> None:
    world.backend.scripts, world.backend.retried = [("RUNNING",)], ("RUNNING", "FAILED")
    run = world.backend.runs[world.json("submit")["run"]]
    for _ in range(2):
        world.backend.report(run, "FAILED")
        world.backend.states[run["run_id"]] = ["FAILED"]
        assert world.json("submit")["action"] == "retried"
    world.backend.report(run, "FAILED")
    world.backend.states[run["run_id"]] = ["FAILED"]
    _, err = world.call("submit", code=4)
    assert "failed 3 times" in err and "go on with `cycleqd retry seeding`" in err
    assert len([call for call in world.backend.posts() if call.endswith(":retry")]) == 2


def test_retry_and_cancel_by_name(world: World) -> None:
    name = world.store.evolution
    experiment = world.backend.add_experiment(name)
    failed = world.backend.add_run(f"{name}-seeding", "FAILED", experiment=experiment)
    assert world.json("retry", "seeding")["run"] == failed["run_id"]
    assert failed["state"] == "RUNNING"
    world.backend.states[failed["run_id"]] = ["RUNNING"]
    assert f"run seeding ({failed['run_id']}) is being cancelled" in world.call("cancel")[0]
    assert failed["state"] == "CANCELING"
    world.backend.poll(failed), world.backend.poll(failed)
    assert failed["state"] == "FAILED", "as Kubeflow has it"
    assert "no run" in world.call("cancel")[0] and "is CANCELED already" in world.call("cancel", "seeding")[0]
    _, err = world.call("retry", "generation-000007", code=2)
    assert "has no run 'generation-000007'" in err
    assert world.json("submit")["action"] == "started", "a run that had been cancelled is replaced"


def test_two_drives_at_once_share_every_run(world: World) -> None:
    processes = [world.start("drive", "--json") for _ in range(2)]
    ended = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    for step in ("seeding", "generation-000000", "finalising"):
        states = [run["state"] for run in world.backend.runs.values() if run["display_name"].endswith(step)]
        assert states.count("SUCCEEDED") == 1 and set(states) <= {"SUCCEEDED", "FAILED", "CANCELING"}
    assert find_state(world.store).generation == 1  # type: ignore[union-attr]


CRON = "0 */30 * * * *"


def test_a_schedule_is_made_once_replaced_and_removed(world: World) -> None:
    _, err = world.call("schedule", "--cron", CRON, code=2)
    assert "is not seeded yet" in err and world.backend.schedules == {}
    world.store.put_json(layout.HEAD, {"edition": 0, "sha256": "0", "snapshot": 0})
    made = world.json("schedule", "--cron", CRON)
    (body,) = world.backend.schedules.values()
    assert body["trigger"] == {"cron_schedule": {"cron": CRON}} and body["mode"] == "ENABLE"
    assert body["no_catchup"] is True and str(body["max_concurrency"]) == "1"
    assert body["runtime_config"]["parameters"]["generation"] == -1
    assert world.json("schedule", "--cron", CRON) == {**made, "changed": False}
    assert list(world.backend.schedules) == [made["schedule"]]
    body |= {"mode": "DISABLE", "status": "DISABLED"}
    again = world.json("schedule", "--cron", CRON)
    assert again["changed"] and list(world.backend.schedules) == [again["schedule"]]
    other = world.json("schedule", "--cron", "0 0 2 * * *")
    assert other["changed"] and list(world.backend.schedules) == [other["schedule"]]
    assert world.json("unschedule")["removed"] == [other["schedule"]]
    assert world.backend.schedules == {} and "has no schedule" in world.call("unschedule")[0]


def test_a_cron_of_five_fields_is_refused(world: World) -> None:
    assert "write six fields, seconds first" in world.call("schedule", "--cron", "*/30 * * * *", code=2)[1]


def pod(run: str, name: str, arguments: list[str], minute: int) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"pipeline/runid": run}},
        "spec": {"containers": [{"name": "wait", "args": []}, {"name": "main", "args": arguments}]},
        "status": {"phase": "Succeeded", "startTime": f"2026-01-01T00:{minute:02d}:00Z"},
    }


def test_logs_of_a_run(world: World) -> None:
    name = world.store.evolution
    run = world.backend.add_run(f"{name}-generation-000000", "FAILED", experiment=world.backend.add_experiment(name))
    spec = ["--component_spec", '{"executorLabel":"exec-merge"}', "--executor_input", '{"item": "g000000-c00"}']
    world.backend.pods = [
        pod(run["run_id"], "w-system-container-impl-2", ["--component_spec", '{"executorLabel": "exec-update"}'], 9),
        pod(run["run_id"], "w-system-container-impl-1", spec, 5),
        pod(run["run_id"], "w-system-dag-driver-1", ["--type", "ROOT_DAG"], 1),
        pod("another run", "w-system-container-impl-3", spec, 1),
    ]
    world.backend.pod_logs = {
        "w-system-container-impl-1": "\n".join([*(f"line {n}" for n in range(9)), "\x1b[31mred\x07"]),
        "w-system-dag-driver-1": "driving",
    }
    out, _ = world.call("logs", "generation-000000", "--lines", "3")
    heads = [line for line in out.splitlines() if line.startswith("===")]
    assert heads == [
        "=== merge g000000-c00 · Succeeded · w-system-container-impl-1",
        "=== update · Succeeded · w-system-container-impl-2",
    ]
    assert "line 8\n" in out and "line 6" not in out
    assert "\x1b" not in out and "\\x1b[31mred\\x07" in out
    assert 'container "main" in pod "w-system-container-impl-2" is waiting to start: ImagePullBackOff' in out
    assert [fact["task"] for fact in world.json("logs", run["run_id"], "--task", "merge")] == ["merge"]
    assert "driving" in world.call("logs", run["run_id"], "--all")[0]
    assert "it has: merge, update" in world.call("logs", run["run_id"], "--task", "seed", code=2)[1]


def test_logs_are_there_when_the_pods_are_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    name = world.store.evolution
    run = world.backend.add_run(f"{name}-generation-000000", "FAILED", experiment=world.backend.add_experiment(name))
    monkeypatch.setenv("KFP_RUN_ID", run["run_id"])
    monkeypatch.setenv("KFP_POD_NAME", "pod-1")
    with pytest.raises(InvalidInputError), recorded(world.store, "merge", "g000000-c00"):
        os.write(1, b"120 of 378 bytes merged\n")
        raise InvalidInputError("no such model")
    out, _ = world.call("logs", "generation-000000")
    head = f"run generation-000000 ({run['run_id']}) failed: merge g000000-c00: no such model\n"
    assert out.startswith(head)
    assert "=== merge g000000-c00 · Failed · pod-1\n120 of 378 bytes merged\nno such model\n" in out
    (fact,) = world.json("logs", run["run_id"])
    assert fact["log"] == "120 of 378 bytes merged\nno such model"


def test_a_run_whose_workflow_is_gone_is_shown_and_archived(world: World) -> None:
    name = world.store.evolution
    experiment = world.backend.add_experiment(name)
    world.backend.add_run(f"{name}-seeding", "SUCCEEDED", experiment=experiment)
    run = world.backend.add_run(f"{name}-generation-000000", "RUNNING", experiment=experiment)
    world.backend.take(run)
    assert [(row["name"], row["gone"]) for row in world.json("runs")] == [
        ("generation-000000", True),
        ("seeding", False),
    ]
    assert "is RUNNING, but its workflow is gone" in world.call("runs")[0]
    assert "had lost its workflow, and is archived" in world.call("cancel")[0]
    assert run["storage_state"] == "ARCHIVED" and run["state"] == "RUNNING"


def test_everything_that_is_missing_is_said_before_anything_starts(world: World, tmp_path: Path) -> None:
    world.backend.secrets, world.backend.config_maps = {}, {"cycleqd-settings": {"AWS_ENDPOINT_URL": "x"}}
    tree = yaml.safe_load(world.config.read_text())
    tree["tasks"]["one"]["data"] = "nowhere.json"
    tree["models"]["base"] = "nobody"
    world.config.write_text(yaml.safe_dump(tree))
    _, err = world.call("submit", code=2)
    for words in (
        "namespace 'kubeflow' has no secret 'cycleqd-credentials'",
        "config map 'cycleqd-settings' in namespace 'kubeflow' lacks MLFLOW_TRACKING_URI",
        "nowhere.json",
        "nobody",
    ):
        assert words in err
    assert world.backend.posts() == [] and world.store.list("") == {}


def test_a_secret_may_hold_what_is_needed_and_nothing_by_halves(world: World) -> None:
    secrets = world.backend.secrets
    for held, said in (
        ({"AWS_ACCESS_KEY_ID": "x"}, "one is of no use: add the other"),
        ({"OTHER": "x"}, "has none of AWS_ACCESS_KEY_ID, .* or make place.secret null"),
    ):
        secrets["cycleqd-credentials"] = held
        assert re.search(said, world.call("submit", code=2)[1])
    assert world.backend.posts() == []
    secrets["cycleqd-credentials"] = {"MLFLOW_TRACKING_TOKEN": "x"}
    assert world.json("submit")["action"] == "started"


def test_certificates_and_claims_that_the_place_names_are_looked_for(world: World) -> None:
    tree = yaml.safe_load(world.config.read_text())
    tree["place"] |= {"secret": None, "certificates": "authorities", "volumes": {"cache": "models"}}
    world.config.write_text(yaml.safe_dump(tree))
    world.backend.secrets, world.backend.config_maps["authorities"] = {}, {"other": "x"}
    _, err = world.call("submit", code=2)
    assert "config map 'authorities' in namespace 'kubeflow' lacks ca.crt" in err and "secret" not in err
    assert "namespace 'kubeflow' has no persistent volume claim 'models'" in err


def test_another_place_that_cannot_see_the_inputs_joins_the_seeding_in_flight(world: World) -> None:
    """The driver's pod, started while a laptop's run is seeding, is given the same evolution without its files."""
    world.backend.scripts = [("RUNNING",)]
    run = world.json("submit")["run"]
    tree = yaml.safe_load(world.config.read_text())
    tree["models"]["base"] = "s3://nowhere/base"
    world.config.write_text(yaml.safe_dump(tree))
    assert (found := world.json("submit"))["action"] == "in flight" and found["run"] == run
    world.backend.states[run] = ["CANCELED"]
    world.backend.runs[run]["state"] = "CANCELED"
    assert "s3://nowhere/base" in world.call("submit", code=2)[1]


def test_what_may_not_be_asked_is_a_warning(world: World) -> None:
    world.backend.forbidden = ("namespaces", "secrets", "configmaps")
    _, err = world.call("submit")
    assert err.count("whether it is there was not checked") == 2 and names(world) == ["seeding"]
    _, err = world.call("submit", KUBECONFIG="/nowhere", MLFLOW_TRACKING_URI="")
    assert "no Kubernetes cluster is known" in err and "MLFLOW_TRACKING_URI is not set here" in err


def test_s3_that_only_pods_reach_is_explained(world: World) -> None:
    _, err = world.call("submit", code=5, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "reads there how far the evolution is: from outside the cluster, port-forward the store" in err
    assert world.backend.posts() == []


def test_flags_beat_the_environment_and_a_dead_endpoint_is_one_sentence(world: World) -> None:
    _, err = world.call("runs", "--endpoint", "http://127.0.0.1:9", code=5)
    assert err.startswith("cycleqd: Kubeflow Pipelines does not answer at http://127.0.0.1:9")
    assert len(err.strip().splitlines()) == 1
    world.backend.multi_user = True
    _, err = world.call("runs", "--namespace", "elsewhere", code=2)
    assert "does not allow this in namespace 'elsewhere'" in err
    assert "has no runs" in world.call("runs", "--namespace", "team")[0]


def test_another_configuration_of_the_same_name_is_refused(world: World) -> None:
    world.store.put(layout.CONFIG, frozen_bytes(load(world.config).model_copy(update={"seed": 99})))
    assert "was started with another configuration" in world.call("submit", code=4)[1]
    world.store.put(layout.HEAD, b'{"edition": 0, "format": 1, "sha256": "0", "snapshot": 0}')
    assert "was started with another configuration" in world.call("schedule", "--cron", CRON, code=4)[1]
    assert world.backend.schedules == {}


def test_embedded_services_are_refused(world: World) -> None:
    tree = yaml.safe_load(world.config.read_text())
    tree["place"]["services"] = "embedded"
    world.config.write_text(yaml.safe_dump(tree))
    assert "place.services is embedded, which pods cannot reach" in world.call("submit", code=2)[1]
    assert world.backend.calls == []
