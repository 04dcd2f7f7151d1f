"""AgentBench's own os-interaction data, all 110 tasks: gold answers pass, and each that does not is named.

Needs the environment's CYCLEQD_BENCHMARKS, the folder that holds agentbench_os/, and the root image (made if missing).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd.evaluation.benchmarks.inputs import selected
from cycleqd.evaluation.benchmarks.os.needs import NO_PROCESSES, NO_USERS, machine_offers, needs
from cycleqd.evaluation.benchmarks.os.records import read
from cycleqd.evaluation.benchmarks.os.task import OsTask
from cycleqd.evaluation.task import Outcome, Workspace
from tests.os_play import gold, play_all, says

pytestmark = pytest.mark.timeout(900)  # the first to need the root may have to make it
BROKEN_CHECK = {"153"}  # its comparator reads du's "4.0K" as an integer, and fails on every answer
TIMING = {"57"}  # counts processes called bash, among them its own pipeline's while it starts
NEED_USERS = {"21", "49", "52", "60", "148", "163", "164", "165"}
NEED_PROCESSES = {"17", "57", "60", "96", "168"}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("CYCLEQD_BENCHMARKS")
    if not folder:
        pytest.skip("CYCLEQD_BENCHMARKS does not name the folder with the benchmarks' data")
    return Path(folder) / "agentbench_os"


@pytest.fixture(scope="module")
def task(data: Path, os_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OsTask]:
    offers = machine_offers()
    lacking = (set() if offers.users else NEED_USERS) | (set() if offers.proc else NEED_PROCESSES)
    settings = {"ids": "task_ids.json", "exclude": sorted(map(int, lacking))}
    made = OsTask(settings, Workspace(tmp_path_factory.mktemp("os"), workers=4))
    if problems := made.preflight():
        pytest.skip(problems[0])
    with made:
        yield made


def test_the_tasks_are_of_three_kinds_and_their_needs_are_known(data: Path) -> None:
    file = data / "samples.json"
    samples = selected(read(file), "task_ids.json", file)
    assert Counter(sample.group for sample in samples) == {"match": 12, "answer": 88, "state": 10}
    assert {sample.id for sample in samples if NO_USERS in needs(sample)} == NEED_USERS
    assert {sample.id for sample in samples if NO_PROCESSES in needs(sample)} == NEED_PROCESSES


def test_gold_passes_but_for_what_the_data_breaks(task: OsTask, data: Path) -> None:
    verdicts = play_all(task, task.load(data), gold, workers=4)
    missed = {one for one, verdict in verdicts.items() if not verdict.passed}
    assert BROKEN_CHECK <= missed <= BROKEN_CHECK | TIMING
    assert len(verdicts) - len(missed) >= (107 if len(verdicts) == 110 else 97)  # 110: a plain machine, as root


def test_wrong_and_malformed_answers_fail(task: OsTask, data: Path) -> None:
    samples = task.load(data)
    wrong = play_all(task, samples, says("Act: answer(-7)"), workers=4)
    assert {verdict.outcome for verdict in wrong.values()} == {Outcome.WRONG}
    malformed = play_all(task, samples, says("The answer is 7."), workers=4)
    assert {verdict.outcome for verdict in malformed.values()} == {Outcome.FORMAT}


def test_verdicts_are_the_same_with_one_worker_and_eight(task: OsTask, data: Path) -> None:
    samples = [sample for sample in task.load(data) if sample.id not in TIMING][::5]
    assert play_all(task, samples, gold, workers=1) == play_all(task, samples, gold, workers=8)
