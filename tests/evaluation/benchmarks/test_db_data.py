"""DBBench's own data, all of it: gold answers pass, and each that does not is named with its reason.

Needs the environment's CYCLEQD_BENCHMARKS, the folder that holds agentbench_db/.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cycleqd.evaluation.benchmarks.db.mariadb.box import missing
from cycleqd.evaluation.benchmarks.db.task import DbTask, same_answer, table_md5
from cycleqd.evaluation.engines import Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.jobs import SampleRecord
from cycleqd.evaluation.task import Message, Outcome, Sample, Workspace
from tests.scripted import Scripted

# Records whose stored query, which AgentBench never runs, does not give the stored label. Asked for is the label.
# "quoted" or [bracketed] names, names with spaces left bare, words run together: MySQL's error 1064
NOT_MYSQL = [
    *(0, 3, 4, 5, 6, 7, 9, 10, 11, 15, 23, 33, 35, 37, 38, 42, 44, 45, 46, 47, 49, 51, 52, 53, 54, 56, 57, 62, 63, 66),
    *(67, 70, 72, 78, 79, 80, 81, 90, 93, 94, 99, 300, 307, 308, 311, 313, 319),
]
NO_SUCH_TABLE = [1, 14, 25, 61, 88, 96, 305, 318]  # error 1146: another spelling; 14 and 305 are FAULTY
NO_SUCH_COLUMN = [13, 43, 87, 302, 306]  # error 1054; 13 is FAULTY too
LABEL_NONE = [36, 39, 309, 317]  # the label is the word "none"
SEVERAL_CELLS = [2, 40, 58, 64, 89]  # more rows or columns than the label has items
OTHER_VALUE = [17, 19, 21, 22, 24, 28, 29, 31, 55, 69, 71, 74, 75, 77, 84, 85, 91, 301, 312, 315, 316]  # another value
# Tables that AgentBench's own statements fail to create (a column's name twice, or none) or to fill (a short row).
FAULTY = {"1146 (42S02)": {"13", "14", "305"}, "[]": {"17", "77"}}


@pytest.fixture(scope="module")
def data() -> Path:
    if "CYCLEQD_BENCHMARKS" not in os.environ:
        pytest.skip("CYCLEQD_BENCHMARKS does not name the folder of the benchmarks' data")
    return Path(os.environ["CYCLEQD_BENCHMARKS"], "agentbench_db")


@pytest.fixture(scope="module")
def task(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbTask]:
    if lacks := missing():
        pytest.skip(lacks[0])
    with DbTask({}, Workspace(tmp_path_factory.mktemp("data"), 8)) as running:
        yield running


@pytest.fixture(scope="module")
def samples(task: DbTask, data: Path) -> list[Sample]:
    return task.load(data)


@pytest.fixture(scope="module")
def golden(task: DbTask, samples: list[Sample]) -> tuple[SampleRecord, ...]:
    return replay(task, samples, gold, 8)


def passed(record: SampleRecord) -> bool:
    return record.outcome is Outcome.PASSED


def operation(sql: str) -> str:
    return f"Let me do this.\nAction: Operation\n```sql\n{sql}\n```"


def gold(sample: Sample) -> list[str]:
    """A model that knows: it runs the stored statement, then gives the stored answer."""
    label = sample.record["label"]
    sql = sample.record["sql"]["query"] if "sql" in sample.record else label[0]
    return [operation(sql), f"That is all.\nAction: Answer\nFinal Answer: {label}"]


class Following(Scripted):
    """An engine whose model follows a script: the n-th reply to a sample, known by its question."""

    def __init__(self, script: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self._script = script

    def reply(self, conversation: Sequence[Message]) -> str:
        turn = sum(message["role"] == "assistant" for message in conversation) - 1  # less the "Ok."
        return self._script[conversation[2]["content"]][turn]


def replay(
    task: DbTask, samples: Sequence[Sample], model: Callable[[Sample], list[str]], workers: int
) -> tuple[SampleRecord, ...]:
    """The whole evaluator, all samples open at once, with a scripted model that stops where the script does."""
    script = {f"{s.record['description']}\n{s.record['add_description']}": model(s) for s in samples}
    assert len(script) == len(samples)
    return evaluate(Following(script), task, samples, Sampling(max_tokens=512), workers=workers).records


def test_gold_passes(samples: list[Sample], golden: tuple[SampleRecord, ...]) -> None:
    assert [record.id for record in golden] == [sample.id for sample in samples]
    assert Counter(record.group for record in golden if passed(record)) == {"SELECT": 120, "INSERT": 120, "UPDATE": 119}
    assert [record.id for record in golden if not passed(record)] == ["225"]


def test_the_one_miss_is_the_datas_own(samples: list[Sample]) -> None:
    """225's hash is of a table that held its rows twice: record 312 has a table of the same name with the same rows."""
    table = samples[225].record["table"]
    assert table == samples[312].record["table"]
    rows = [[*row[:6], "16"] if row[0] == "Johnson" else row for row in table["table_info"]["rows"]]
    assert samples[225].record["label"] == ["UPDATE football_stats SET Points = '16' WHERE Player = 'Johnson'"]
    assert table_md5(rows) != samples[225].record["answer_md5"] == table_md5(rows + rows)


def test_the_default_set(task: DbTask, data: Path, samples: list[Sample], golden: tuple[SampleRecord, ...]) -> None:
    chosen = DbTask({"ids": "task_ids.json"}, task.workspace).load(data)
    assert [sample.id for sample in chosen] == [str(one) for one in json.loads((data / "task_ids.json").read_text())]
    assert len(chosen) == 341
    ids = {sample.id for sample in chosen}
    counted = Counter(record.group for record in golden if record.id in ids and passed(record))
    assert (counted["INSERT"], counted["UPDATE"]) == (114, 108)  # of 114 and 109: 225 is among them
    assert counted["SELECT"] == 341 - 114 - 109


@pytest.mark.parametrize("workers", [1, 8])
def test_verdicts_do_not_depend_on_the_run_or_the_workers(
    task: DbTask, samples: list[Sample], golden: tuple[SampleRecord, ...], workers: int
) -> None:
    assert replay(task, samples, gold, workers) == golden


def test_doing_nothing_fails(task: DbTask, samples: list[Sample]) -> None:
    plays = replay(task, samples, lambda sample: ["Nothing to do.\nAction: Answer\nFinal Answer: ['done']"], 8)
    assert {record.outcome for record in plays} == {Outcome.WRONG}


def test_malformed_replies_fail(task: DbTask, samples: list[Sample]) -> None:
    def bare(sample: Sample) -> list[str]:
        """The right words without the form."""
        return [" ".join(gold(sample)).replace("Action:", "action").replace("Final Answer:", "So:")]

    plays = replay(task, samples, bare, 8)
    assert {record.outcome for record in plays} == {Outcome.FORMAT}


def test_the_next_records_answer_fails(task: DbTask, samples: list[Sample]) -> None:
    asked = [sample for sample in samples if sample.group == "SELECT"]
    others = dict(zip((sample.id for sample in asked), asked[1:] + asked[:1], strict=True))
    plays = replay(task, asked, lambda sample: [f"\nFinal Answer: {others[sample.id].record['label']}"], 8)
    same = {s.id for s in asked if same_answer(others[s.id].record["label"], s.record["label"])}
    assert {record.id for record in plays if passed(record)} == same
    assert len(same) < 5


def test_stored_queries_as_the_data_allow(
    task: DbTask, samples: list[Sample], golden: tuple[SampleRecord, ...]
) -> None:
    asked = [record for record in golden if record.group == "SELECT"]
    for code, ids in ((1064, NOT_MYSQL), (1146, NO_SUCH_TABLE), (1054, NO_SUCH_COLUMN)):
        assert [int(record.id) for record in asked if record.messages[4]["content"].startswith(f"{code} (42")] == ids
    with DbTask({"judge": "rows", "max_rounds": 1}, task.workspace) as judge:
        plays = replay(judge, [sample for sample in samples if sample.group == "SELECT"], gold, 8)
    assert all(len(record.replies) == 1 for record in plays)
    failed = {int(record.id) for record in plays if not passed(record)}
    named = [NOT_MYSQL, NO_SUCH_TABLE, NO_SUCH_COLUMN, LABEL_NONE, SEVERAL_CELLS, OTHER_VALUE]
    assert failed == {one for ids in named for one in ids}
    assert len(asked) - len(failed) == 30


def test_faulty_tables_are_as_in_agentbench(task: DbTask, samples: list[Sample]) -> None:
    def look(sample: Sample) -> list[str]:
        return [operation(f"SELECT * FROM `{sample.record['table']['table_name']}`"), "ok"]

    plays = replay(task, samples, look, 8)
    for said, ids in FAULTY.items():
        assert {record.id for record in plays if record.messages[4]["content"].startswith(said)} == ids
