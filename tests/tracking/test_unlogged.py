"""Nothing is lost: what MLflow missed (it was away, a task was killed) is in it afterwards, as if undisturbed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import UnavailableError
from cycleqd.run import tracked
from cycleqd.search import config as configuration
from cycleqd.storage.client import connect_client
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from cycleqd.tracking.ending import FAILED
from cycleqd.tracking.tracker import KEY, Tracker
from tests.conftest import new_bucket
from tests.evolution import Evolution
from tests.ledger import Ledger, ledger

NOWHERE = "http://127.0.0.1:9"
CHANGES = {"seed": 3, "method": {"generations": 1, "children": 2, "grid": {"bins": 2}}}
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.preloaded"])


@pytest.fixture(scope="module")
def undisturbed(
    services: dict[str, str], tiny_models: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Evolution, Ledger]]:
    """An evolution and what MLflow holds of it; its name is free for others."""
    with pytest.MonkeyPatch.context() as patch:
        variables = new_bucket(services, tmp_path_factory.mktemp("undisturbed"), patch)
        made = Evolution.make(f"whole-{variables['CYCLEQD_BUCKET']}", tiny_models, tiny_tasks, CHANGES)
        made.seeding()
        made.generation()
        made.finalising()
        found = ledger(made.name)
        found.rename(f"{made.name}-undisturbed")
        MlflowClient(services["MLFLOW_TRACKING_URI"]).rename_registered_model(made.name, f"{made.name}-undisturbed")
        connect_client(Settings.from_environment()).delete_bucket(Bucket=variables["CYCLEQD_BUCKET"])
    return made, found


@pytest.fixture
def again(undisturbed: tuple[Evolution, Ledger], environment: dict[str, str]) -> Iterator[Evolution]:
    """The same evolution, from nothing, in a bucket and an experiment of its own."""
    made, _ = undisturbed
    yield made
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string=f"name = '{made.name}'")
    client.rename_experiment(experiment.experiment_id, f"{made.name}-{environment['CYCLEQD_BUCKET']}")
    client.rename_registered_model(made.name, f"{made.name}-{environment['CYCLEQD_BUCKET']}")


def statuses(evolution: str) -> dict[str, str]:
    """The status of every run by its key."""
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string=f"name = '{evolution}'")
    return {run.data.tags[KEY]: run.info.status for run in client.search_runs([experiment.experiment_id])}


def equal(found: Ledger, expected: Ledger) -> None:
    assert found.runs.keys() == expected.runs.keys()
    for key, entry in expected.runs.items():
        assert found.runs[key] == entry, key


def command(evolution: Evolution, folder: Path, *arguments: str) -> Any:
    """A command's result; the evolution's configuration comes from a file."""
    path = folder / "evolution.yaml"
    tree = evolution.tree
    place = {"services": "external", "bucket": os.environ["CYCLEQD_BUCKET"], "folder": str(folder / "place")}
    path.write_text(yaml.safe_dump({**tree, "place": {**tree["place"], **place}}))
    return CliRunner().invoke(app, [*arguments, "-c", str(path)])


def away(patch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do it while MLflow does not answer."""
    with patch.context() as changed:
        changed.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        changed.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        work()


def test_mlflow_was_away_at_seeding_and_at_finalising(
    again: Evolution,
    undisturbed: tuple[Evolution, Ledger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    away(monkeypatch, again.seeding)
    assert "seed" in unlogged.pending(again.store) and "seed/update" in unlogged.pending(again.store)
    assert f"MLflow at {NOWHERE} failed" in capfd.readouterr().err
    again.generation()
    assert unlogged.pending(again.store) == []  # the next task logged it all
    away(monkeypatch, again.finalising)
    left = len(unlogged.pending(again.store))
    assert left > 20
    told = command(again, tmp_path, "status")
    assert told.exit_code == 0 and f"{left} records are not in MLflow yet" in told.output
    away(monkeypatch, lambda: refused(command(again, tmp_path, "repair")))
    assert command(again, tmp_path, "repair").exit_code == 0
    equal(ledger(again.name), undisturbed[1])
    assert "not in MLflow" not in command(again, tmp_path, "status").output
    assert command(again, tmp_path, "repair").exit_code == 0  # which adds nothing
    equal(ledger(again.name), undisturbed[1])


def refused(result: Any) -> None:
    assert result.exit_code == UnavailableError.exit_code and NOWHERE in result.output


def killed(environment: Mapping[str, str], tree: Mapping[str, Any], call: str, arguments: list[Any]) -> None:
    """Run a stage and be killed when all is recorded and nothing logged."""
    os.environ.update(environment)
    unlogged.log = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
    getattr(Evolution(configuration.parse(tree, "test")), call)(*arguments)


def test_tasks_were_killed_between_record_and_log(
    again: Evolution,
    undisturbed: tuple[Evolution, Ledger],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a Kubeflow that mirrors its own runs into MLflow, too: its run stays as it is."""
    client, settings = MlflowClient(environment["MLFLOW_TRACKING_URI"]), Settings.from_environment()
    experiment = client.create_experiment(f"kubeflow-{environment['CYCLEQD_BUCKET']}")
    mirrored = client.create_run(experiment, run_name="generation-000000", tags={"kfp": "yes"})
    client.log_param(mirrored.info.run_id, "evolution", again.name)
    before = client.get_run(mirrored.info.run_id).to_dictionary()
    injected = {"MLFLOW_RUN_ID": mirrored.info.run_id, "MLFLOW_EXPERIMENT_ID": experiment}
    for name, value in injected.items():
        monkeypatch.setenv(name, value)

    def dies(call: str, *arguments: Any) -> None:
        process = _PROCESSES.Process(
            target=killed, args=({**environment, **injected}, again.tree, call, list(arguments))
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    dies("seed")
    again.seeding()
    tracked.stopped(settings, again.store, FAILED)
    assert statuses(again.name)["evolution"] == FAILED
    loop = again.select(0)
    assert statuses(again.name)["evolution"] == "RUNNING"  # it goes on
    again.merge(*loop)
    children = [f"g000000-c{index:02d}" for index in range(2)]
    dies("evaluate", children)
    dies("update", 0)
    models = ["base", "expert-a", "expert-b", "expert-c"]
    again.aggregate()
    again.evaluate([*models, "naive", "aggregated", *children])
    models = again.choose()
    again.evaluate(models)
    dies("evaluate", models, "test")
    assert statuses(again.name)["evolution"] == "RUNNING"
    assert tracked.finish(settings, again.store) is None  # as the driver does, which finds nothing to run
    equal(ledger(again.name), undisturbed[1])
    assert unlogged.pending(again.store) == []
    assert client.get_run(mirrored.info.run_id).to_dictionary() == before
    assert client.list_artifacts(mirrored.info.run_id) == []
    assert {name: os.environ[name] for name in injected} == injected


def test_what_nothing_works_on_is_killed_by_repair(
    evolution: Callable[..., Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = evolution()
    made.seeding()
    made.select(0)
    running = {key for key, status in statuses(made.name).items() if status == "RUNNING"}
    assert running == {"evolution", "generation:000000", "model:g000000-c00"}
    for _ in range(2):
        assert command(made, tmp_path, "repair").exit_code == 0
        assert {key for key, status in statuses(made.name).items() if status == "KILLED"} == running


def test_a_server_that_takes_no_more_is_one_sentence(
    services: dict[str, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts fail in another way than the rest: here their folder cannot be made."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(Settings.from_environment())
    experiment = tracker.client.create_experiment(f"full-{environment['CYCLEQD_BUCKET']}")
    run = tracker.client.create_run(experiment).info.run_id
    (artifacts,) = Path(services["CYCLEQD_CACHE"]).parent.rglob("mlflow/artifacts")
    (artifacts / experiment).write_text("in the way")
    with pytest.raises(UnavailableError, match="check MLFLOW_TRACKING_URI"):
        tracker.text(run, "config.json", "{}")
