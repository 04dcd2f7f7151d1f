"""A driver that is interrupted, killed, or not alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cycleqd.cli.session import connect
from cycleqd.run.local.services import running
from cycleqd.search.config import load
from tests.run.conftest import Finished, content, start
from tests.run.processes import wait_for_none
from tests.run.world import make_world

pytestmark = pytest.mark.timeout(1800)


def wait_for(step: Path, task: str, process: subprocess.Popen[str]) -> None:
    """Until a task of a step has begun, as its log shows."""
    while not list(step.glob(f"*-{task}*.log")):
        assert process.poll() is None, f"ended before {task} of {step.name} began: {process.communicate()[1]}"
        time.sleep(0.05)


def test_an_evolution_survives_ctrl_c_and_kill_9_unchanged(finished: Finished, tmp_path: Path) -> None:
    """Interrupted while staging, killed while scoring experts, while merging, and while updating: the same archives."""
    path = make_world(tmp_path)
    runs = tmp_path / "state" / "runs" / "world"

    process = start("run", "-c", str(path))
    wait_for(runs / "seeding", "seed", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved: nothing is complete yet" in errors and f"cycleqd run -c {path}" in errors
    assert "Traceback" not in errors
    wait_for_none(tmp_path)

    for step, task in (("seeding", "evaluate"), ("generation-000000", "merge"), ("generation-000001", "update")):
        process = start("run", "-c", str(path))
        wait_for(runs / step, task, process)
        process.kill()
        process.communicate(timeout=120)

    process = start("run", "-c", str(path), "--json")
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    wait_for_none(tmp_path)
    config = load(path)
    with running(config.place, tracking=False) as environment:
        interrupted = content(connect(config, environment).store)
    os.environ.update(finished.session.environment)  # connecting to the other services changed it
    undisturbed = finished.content
    assert sorted(interrupted) == sorted(undisturbed)
    assert [key for key in undisturbed if interrupted[key] != undisturbed[key]] == []


def test_a_second_driver_is_told_of_the_first(tmp_path: Path) -> None:
    path = make_world(tmp_path)
    first = start("run", "-c", str(path))
    lock = tmp_path / "state" / "runs" / "world" / "driver.lock"
    while str(first.pid) not in (lock.read_text() if lock.exists() else ""):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    second = start("run", "-c", str(path))
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 4
    assert f"is being run by process {first.pid}" in errors
    first.terminate()
    first.communicate(timeout=120)
    assert first.returncode == 143
    wait_for_none(tmp_path)


def test_a_failing_stage_is_one_sentence(tmp_path: Path) -> None:
    """The error that a stage raised in a process of its own, with its exit code."""
    path = make_world(tmp_path)
    (tmp_path / "red" / "config.json").unlink()
    process = start("run", "-c", str(path))
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (2, 3)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("cycleqd: ") and "config.json" in last and "Traceback" not in errors
    wait_for_none(tmp_path)
