"""Runs on this machine: they end with their driver, and what is noted of them speaks of one evolution."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cycleqd.errors import CycleQDError
from cycleqd.run.local.runner import LocalRunner
from cycleqd.run.steps import Step, arguments
from cycleqd.search.config import Config, load
from tests.run.conftest import Finished
from tests.run.processes import run_until, wait_for_none

SEEDING = """
from cycleqd.run.local.runner import LocalRunner
from cycleqd.run.steps import Step, arguments
from tests.pipelines.configs import two_tasks

config, step = two_tasks(folder={folder!r}), Step("seeding")
LocalRunner(config, {{}}, print).run(step, arguments(config, step, None))
"""


@pytest.mark.timeout(300)
def test_a_run_whose_driver_was_killed_as_soon_as_it_was_told_its_job_does_not_begin(folder: Path) -> None:
    run_until("call", "LocalRunner._listen", SEEDING.format(folder=str(folder)), folder)
    wait_for_none(folder)
    (temporary,) = folder.glob("cycleqd-run-*")
    assert list(temporary.glob("root-*")) == []


@pytest.mark.timeout(300)
def test_a_warm_process_ends_though_its_starter_was_killed_at_once(folder: Path) -> None:
    run_until("return", "Popen.__init__", "from cycleqd.run.local.warm import Warm\nwith Warm():\n    pass", folder)
    wait_for_none(folder)
    assert list(folder.glob("cycleqd-warm-*")) == []


def elsewhere(config: Config, **place: str) -> Config:
    return config.model_copy(update={"place": config.place.model_copy(update=place)})


@pytest.mark.timeout(1800)
def test_a_run_that_ended_well_says_so_of_its_own_evolution_and_until_it_is_repeated(
    finished: Finished, tmp_path: Path
) -> None:
    config, step = load(finished.path), Step("seeding")
    shutil.copytree(Path(config.place.folder) / "runs", tmp_path / "runs")
    config = elsewhere(config, folder=str(tmp_path))
    reach = finished.session.environment
    other_seed = config.model_copy(update={"seed": config.seed + 1})
    known = [
        LocalRunner(*of, print).finished(step)
        for of in (
            (config, reach),
            (elsewhere(config, bucket="another"), reach),
            (config, {**reach, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
            (other_seed, reach),
        )
    ]
    assert known == [True, False, False, False]
    with pytest.raises(CycleQDError):
        LocalRunner(config, {**reach, "AWS_ENDPOINT_URL": ""}, print).run(step, arguments(config, step, None))
    assert not LocalRunner(config, reach, print).finished(step)
