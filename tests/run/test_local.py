"""Runs on this machine: they end with their driver, and what is noted of them speaks of one evolution."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import (
    ConflictError,
    CycleQDError,
    EvaluationError,
    InvalidInputError,
    OutageError,
    UnavailableError,
)
from cycleqd.run.decisions import Position
from cycleqd.run.driver import Driver
from cycleqd.run.graph import GraphTask
from cycleqd.run.local.forks import Forks
from cycleqd.run.local.logs import StepLogs
from cycleqd.run.local.runner import LocalRunner, logs
from cycleqd.run.steps import Step
from cycleqd.search.config import Config, load
from cycleqd.storage.client import connect_client
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.pipelines.configs import two_tasks
from tests.run.conftest import Finished
from tests.run.processes import processes_of, run_until, wait_for_none

SEEDING = """
from cycleqd.run.local.forks import Forks
from cycleqd.run.local.logs import StepLogs
from cycleqd.run.local.runner import LocalRunner
from cycleqd.run.steps import Step
from tests.pipelines.configs import two_tasks

class Empty:
    def find_with_etag(self, key):
        return None

    def create(self, key, data):
        return True

config, step = two_tasks(folder={folder!r}), Step("seeding")
with Forks() as forks, LocalRunner(config, Empty(), {{}}, print, forks) as runner:
    runner.wait(runner.start(step))
"""
SLEEPING = """
import os, subprocess, sys, time
from pathlib import Path

def f():
    subprocess.Popen(["sleep", "600"])
    Path("{folder}/begun").touch()
    time.sleep(600)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("event", ["c_call", "c_return"])
def test_a_task_whose_driver_was_killed_as_it_was_told_its_job_ends(folder: Path, event: str) -> None:
    run_until(event, "socket.sendall", SEEDING.format(folder=str(folder)), folder)
    wait_for_none(folder)
    (note,) = folder.glob("runs/golden/seeding/*.json")
    assert json.loads(note.read_text()) | {"started": ""} == {
        "task": "seed",
        "child": "",
        "phase": "Running",
        "started": "",
    }


@pytest.mark.timeout(300)
def test_the_process_of_forks_ends_though_its_starter_was_killed_at_once(folder: Path) -> None:
    run_until("return", "Popen.__init__", "from cycleqd.run.local.forks import Forks\nwith Forks():\n    pass", folder)
    wait_for_none(folder)
    assert list(folder.glob("cycleqd-forks-*")) == []


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as made:
        yield made


def launch(forks: Forks, source: str, folder: Path) -> int:
    inputs = json.dumps({"inputs": {}, "outputs": {"outputFile": str(folder / "outputs.json")}})
    arguments = ["--executor_input", inputs, "--function_to_execute", "f"]
    task = GraphTask("t", "image", (source,), tuple(arguments), {}, ())
    return forks.run(task, arguments, folder, folder / "log", {})


@pytest.mark.timeout(300)
def test_a_task_is_known_by_its_exit_code_and_writes_into_its_log(forks: Forks, tmp_path: Path) -> None:
    assert launch(forks, "def f():\n    print('in', __file__)\n", tmp_path) == 0
    assert (tmp_path / "outputs.json").exists() and f"in {tmp_path}/component.py" in (tmp_path / "log").read_text()
    assert launch(forks, "def f():\n    raise SystemExit(7)\n", tmp_path) == 7
    assert launch(forks, "def f():\n    raise ValueError('no')\n", tmp_path) == 1
    assert launch(forks, "import os\ndef f():\n    os.kill(os.getpid(), 9)\n", tmp_path) == 137


@pytest.mark.timeout(300)
def test_ended_tasks_take_their_processes_along(folder: Path) -> None:
    with ThreadPoolExecutor() as pool, Forks() as forks:
        codes = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            codes.append(pool.submit(launch, forks, SLEEPING.format(folder=folder / name), folder / name))
        while not all((folder / name / "begun").exists() for name in ("a", "b")):
            time.sleep(0.05)
        assert len(processes_of(folder)) >= 2  # what the tasks started
        forks.end()
        assert [code.result() for code in codes] == [137, 137]
        assert processes_of(folder) == []
        assert launch(forks, "def f():\n    raise AssertionError('begun')\n", folder) == 137


def task(name: str, **inputs: str) -> GraphTask:
    return GraphTask(name, "image", ("",), (), inputs, ())


def test_logs_of_a_step_are_those_of_its_last_run(tmp_path: Path) -> None:
    config = two_tasks(folder=str(tmp_path))
    StepLogs(tmp_path / "runs/golden/seeding")
    written = StepLogs(tmp_path / "runs/golden/seeding").written
    with written(task("merge", item='{"child": "g000003-c01"}')) as log:
        log.write_text("one\ntwo\nthree\n")
        (running,) = logs(config, "seeding")
        assert (running.name, running.child, running.phase) == ("0001-merge", "g000003-c01", "Running")
    with pytest.raises(KeyError), written(task("evaluate", models='["base", "g000003-c01", "g000003-c02"]')):
        raise KeyError
    merged, evaluated = logs(config, "golden-seeding")
    assert (merged.phase, merged.read(2)) == ("Succeeded", "two\nthree\n")
    assert (evaluated.phase, evaluated.child, evaluated.read(2)) == ("Failed", "", "")
    assert logs(config, "finalising") == logs(config, "../golden") == []
    assert StepLogs(tmp_path / "runs/golden/seeding") and logs(config, "seeding") == []


class Nothing:
    """S3 before anything is seeded."""

    def find_with_etag(self, key: str) -> None:
        return None

    def create(self, key: str, data: bytes) -> bool:
        return True


class Desk:
    """A launcher whose tasks end as it is told: an exit code, what is recorded as a failure, whether they return."""

    def __init__(self, code: int = 0, failure: dict[str, str] | None = None, returns: bool = True) -> None:
        self.code, self.failure, self.returns = code, failure, returns
        self.ran: list[str] = []

    def run(self, task: GraphTask, arguments: list[str], folder: Path, log: Path, environment: dict[str, str]) -> int:
        self.ran.append(task.name)
        known = json.loads(arguments[1])
        if self.returns:
            Path(known["outputs"]["outputFile"]).write_text("{}")
        if self.failure:
            Path(environment["CYCLEQD_FAILURE"]).write_text(json.dumps(self.failure))
        return self.code

    def end(self) -> None:
        pass


def drive(desk: Desk, folder: Path) -> None:
    """The driver on an evolution that is to be seeded, and of which no record ever appears."""
    config = two_tasks(folder=str(folder))
    with LocalRunner(config, Nothing(), {}, lambda task, event: None, desk) as runner:  # type: ignore[arg-type]
        Driver(runner, lambda: Position(Step("seeding"), None), outage=0).drive()


@pytest.mark.parametrize("kind", [EvaluationError, InvalidInputError, UnavailableError])
def test_the_driver_ends_with_what_the_failed_task_recorded(kind: type[CycleQDError], tmp_path: Path) -> None:
    desk = Desk(1, {"kind": kind.__name__, "sentence": "the model is gone"})
    with pytest.raises(kind, match=r"^the model is gone$"):
        drive(desk, tmp_path)
    assert desk.ran == ["seed"]
    (log,) = logs(two_tasks(folder=str(tmp_path)), "seeding")
    assert (log.task, log.phase) == ("seed", "Failed")


@pytest.mark.parametrize("desk", [Desk(137), Desk(0, returns=False), Desk(1, {"kind": "OSError", "sentence": "x"})])
def test_a_task_that_ends_without_a_reason_of_ours_is_named_with_its_log(desk: Desk, tmp_path: Path) -> None:
    log = tmp_path / "runs/golden/seeding/0001-seed.log"
    with pytest.raises(UnavailableError, match=f"task 'seed' of seeding .* exit code {desk.code} .*read {log}"):
        drive(desk, tmp_path)


def test_an_outage_of_the_store_is_waited_out_and_the_step_begun_again(tmp_path: Path) -> None:
    """Ten seconds without S3: a task fails of it, and so does the next look; anything else still ends the run."""

    class Away(Desk):
        def run(self, *given: Any) -> int:
            self.code = int(len(self.ran) < 2)
            self.failure = {"kind": "OutageError", "sentence": "S3 is away"} if self.code else None
            return super().run(*given)

    looks: list[int] = []

    def seeding() -> Position:
        return Position(Step("seeding"), None)

    def position() -> Position:
        looks.append(len(desk.ran))
        if looks.count(1) == 1:
            raise OutageError("S3 is away for HEAD, too")
        return Position(Step("seeding") if "update-archives" not in desk.ran else None, None)

    desk, warnings, pauses = Away(), list[str](), list[float]()
    config = two_tasks(folder=str(tmp_path))
    with LocalRunner(config, Nothing(), {}, lambda task, event: None, desk) as runner:  # type: ignore[arg-type]
        driver = Driver(runner, position, warned=warnings.append, sleep=pauses.append, outage=60, waits_for=OutageError)
        driver.drive()
    assert desk.ran[:3] == ["seed"] * 3 and desk.ran[-1] == "update-archives"
    assert pauses == [1, 2, 4] and warnings[0] == "S3 is away; trying again in 1 s"
    desk = Desk(1, {"kind": "OutageError", "sentence": "S3 is away"})
    pauses.clear()
    with LocalRunner(config, Nothing(), {}, lambda task, event: None, desk) as runner:  # type: ignore[arg-type]
        driver = Driver(runner, seeding, sleep=pauses.append, outage=60, waits_for=OutageError)
        with pytest.raises(OutageError, match="S3 is away"):
            driver.drive()
    assert pauses == [1, 2, 4, 8, 16, 30] and len(desk.ran) == 7  # also where the store answers in between
    desk = Desk(1, {"kind": "UnavailableError", "sentence": "bwrap is missing"})
    with LocalRunner(config, Nothing(), {}, lambda task, event: None, desk) as runner:  # type: ignore[arg-type]
        driver = Driver(runner, seeding, outage=60, waits_for=OutageError)
        with pytest.raises(UnavailableError, match="bwrap is missing"):
            driver.drive()
    assert desk.ran == ["seed"]


@pytest.mark.timeout(600)
def test_a_store_without_conditional_writes_is_refused_before_anything_is_read(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(settings: Settings) -> Any:
        client = connect_client(settings)
        client.meta.events.register(
            "before-sign.s3.PutObject", lambda request, **_: request.headers.__delitem__("If-Match")
        )
        return client

    monkeypatch.setattr("cycleqd.storage.objects.connect_client", careless)
    config = two_tasks(folder=str(tmp_path), services="external", bucket=environment["CYCLEQD_BUCKET"])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    result = CliRunner().invoke(app, ["run", "-c", str(tmp_path / "c.yaml")])
    assert result.exit_code == UnavailableError.exit_code
    assert "ignores a stale If-Match" in " ".join(result.output.split())
    assert Store.connect(Settings.from_environment(environment), config.name).list("") == {}


def test_a_run_that_leaves_no_records_is_not_run_for_ever(tmp_path: Path) -> None:
    desk = Desk()
    with pytest.raises(ConflictError, match="run seeding succeeded, but its records are not in S3"):
        drive(desk, tmp_path)
    assert desk.ran[0] == "seed" and desk.ran[-1] == "update-archives" and desk.ran.count("seed") == 1
    with pytest.raises(ConflictError):  # what another process noted is no success without records
        drive(desk, tmp_path)
    assert desk.ran.count("seed") == 2


def elsewhere(config: Config, **place: str) -> Config:
    return config.model_copy(update={"place": config.place.model_copy(update=place)})


@pytest.mark.timeout(1800)
def test_a_run_that_ended_well_says_so_of_its_own_evolution_and_until_it_is_repeated(
    finished: Finished, forks: Forks, tmp_path: Path
) -> None:
    config, step = adopt(finished.session.store, load(finished.path)), Step("seeding")
    shutil.copytree(Path(config.place.folder) / "runs", tmp_path / "runs")
    config = elsewhere(config, folder=str(tmp_path))
    reach, store = finished.session.environment, finished.session.store
    other_seed = config.model_copy(update={"seed": config.seed + 1})
    known = [
        LocalRunner(of[0], store, of[1], print, forks).finished(step)
        for of in (
            (config, reach),
            (elsewhere(config, bucket="another"), reach),
            (config, {**reach, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
            (other_seed, reach),
        )
    ]
    assert known == [True, False, False, False]
    assert [run.state for run in LocalRunner(config, store, reach, print, forks).runs([step.name])] == []
    with LocalRunner(config, store, {**reach, "AWS_ENDPOINT_URL": ""}, print, forks) as runner:
        run = runner.start(step)
        assert [(one.name, one.live) for one in runner.runs([step.name])] == [("seeding", True)]
        with pytest.raises(CycleQDError):
            runner.wait(run)
    assert not LocalRunner(config, store, reach, print, forks).finished(step)
