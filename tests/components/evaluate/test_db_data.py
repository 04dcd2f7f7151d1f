"""DBBench's own data, all of it: gold answers pass, and each that does not is named with its reason.

Needs the environment's CYCLEQD_BENCHMARKS, the folder that holds agentbench_db/.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.evaluate.benchmarks.db import DbEpisode, DbTask, same_answer, table_md5
from components.evaluate.mariadb_box import missing
from components.evaluate.task import Message, Outcome, Sample, Verdict, Workspace

# Records whose stored query, which AgentBench never runs, does not give the stored label. Asked for is the label.
# "quoted" or [bracketed] names, names with spaces left bare, words run together: MySQL's error 1064
NOT_MYSQL = [
    *(0, 3, 4, 5, 6, 7, 9, 10, 11, 15, 23, 33, 35, 37, 38, 42, 44, 45, 46, 47, 49, 51, 52, 53, 54, 56, 57, 62, 63, 66),
    *(67, 70, 72, 78, 79, 80, 81, 90, 93, 94, 99, 300, 307, 308, 311, 313, 319),
]
NO_SUCH_TABLE = [
    1,
    14,
    25,
    61,
    88,
    96,
    305,
    318,
]  # error 1146: another spelling; 14 and 305 cannot be created (see FAULTY)
NO_SUCH_COLUMN = [13, 43, 87, 302, 306]  # error 1054
LABEL_NONE = [36, 39, 309, 317]  # the label is the word "none"
SEVERAL_CELLS = [2, 40, 58, 64, 89]  # more rows or columns than the label has items
OTHER_VALUE = [17, 19, 21, 22, 24, 28, 29, 31, 55, 69, 71, 74, 75, 77, 84, 85, 91, 301, 312, 315, 316]  # another value
# Tables that AgentBench's own statements fail to create (a column's name twice, or none) or to fill (a short row).
FAULTY = {13: None, 14: None, 305: None, 17: (), 77: ()}

Play = tuple[Verdict, list[Message]]


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
def gold_plays(task: DbTask, samples: list[Sample]) -> list[Play]:
    return replay(task, samples, gold, 8)


def operation(sql: str) -> str:
    return f"Let me do this.\nAction: Operation\n```sql\n{sql}\n```"


def gold(sample: Sample) -> list[str]:
    """A model that knows: it runs the stored statement, then gives the stored answer."""
    label = sample.record["label"]
    sql = sample.record["sql"]["query"] if "sql" in sample.record else label[0]
    return [operation(sql), f"That is all.\nAction: Answer\nFinal Answer: {label}"]


def replay(task: DbTask, samples: Sequence[Sample], model: Callable[[Sample], list[str]], workers: int) -> list[Play]:
    """Whole episodes with a scripted model; verdicts and conversations."""

    def one(sample: Sample) -> Play:
        episode: DbEpisode = task.start(sample)
        try:
            for reply in model(sample):
                if episode.next(reply) is None:
                    break
            return task.verdict(episode), episode.messages
        finally:
            episode.close()

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, samples))


def test_gold_passes(samples: list[Sample], gold_plays: list[Play]) -> None:
    passed = Counter(sample.group for sample, (verdict, _) in zip(samples, gold_plays, strict=True) if verdict.passed)
    assert passed == {"SELECT": 120, "INSERT": 120, "UPDATE": 119}
    misses = {sample.id for sample, (verdict, _) in zip(samples, gold_plays, strict=True) if not verdict.passed}
    assert misses == {"225"}


def test_the_one_miss_is_the_datas_own(samples: list[Sample]) -> None:
    """225's hash is of a table that held its rows twice: record 312 has a table of the same name with the same rows."""
    table = samples[225].record["table"]
    assert table == samples[312].record["table"]
    rows = [[*row[:6], "16"] if row[0] == "Johnson" else row for row in table["table_info"]["rows"]]
    assert samples[225].record["label"] == ["UPDATE football_stats SET Points = '16' WHERE Player = 'Johnson'"]
    assert table_md5(rows) != samples[225].record["answer_md5"] == table_md5(rows + rows)


def test_the_default_set(task: DbTask, data: Path, samples: list[Sample], gold_plays: list[Play]) -> None:
    chosen = DbTask({"ids": "task_ids.json"}, task.workspace).load(data)
    assert [sample.id for sample in chosen] == [str(one) for one in json.loads((data / "task_ids.json").read_text())]
    assert len(chosen) == 341
    by_id = dict(zip((sample.id for sample in samples), gold_plays, strict=True))
    passed = Counter(sample.group for sample in chosen if by_id[sample.id][0].passed)
    assert (passed["INSERT"], passed["UPDATE"]) == (114, 108)  # of 114 and 109: 225 is among them
    assert passed["SELECT"] == 341 - 114 - 109


@pytest.mark.parametrize("workers", [1, 8])
def test_verdicts_do_not_depend_on_the_run_or_the_workers(
    task: DbTask, samples: list[Sample], gold_plays: list[Play], workers: int
) -> None:
    assert replay(task, samples, gold, workers) == gold_plays


def test_doing_nothing_fails(task: DbTask, samples: list[Sample]) -> None:
    plays = replay(task, samples, lambda sample: ["Nothing to do.\nAction: Answer\nFinal Answer: ['done']"], 8)
    assert {verdict.outcome for verdict, _ in plays} == {Outcome.WRONG}


def test_malformed_replies_fail(task: DbTask, samples: list[Sample]) -> None:
    def bare(sample: Sample) -> list[str]:
        """The right words without the form."""
        return [" ".join(gold(sample)).replace("Action:", "action").replace("Final Answer:", "So:")]

    plays = replay(task, samples, bare, 8)
    assert {verdict.outcome for verdict, _ in plays} == {Outcome.FORMAT}


def test_the_next_records_answer_fails(task: DbTask, samples: list[Sample]) -> None:
    asked = [sample for sample in samples if sample.group == "SELECT"]
    others = dict(zip((sample.id for sample in asked), asked[1:] + asked[:1], strict=True))
    plays = replay(task, asked, lambda sample: [f"\nFinal Answer: {others[sample.id].record['label']}"], 8)
    same = {s.id for s in asked if same_answer(others[s.id].record["label"], s.record["label"])}
    assert {s.id for s, (verdict, _) in zip(asked, plays, strict=True) if verdict.passed} == same
    assert len(same) < 5


def test_stored_queries_as_the_data_allow(task: DbTask, samples: list[Sample], gold_plays: list[Play]) -> None:
    asked = [(sample, messages[4]["content"]) for sample, (_, messages) in zip(samples, gold_plays, strict=True)
             if sample.group == "SELECT"]  # fmt: skip
    for code, ids in ((1064, NOT_MYSQL), (1146, NO_SUCH_TABLE), (1054, NO_SUCH_COLUMN)):
        assert [int(sample.id) for sample, said in asked if said.startswith(f"{code} (42")] == ids
    with DbTask({"judge": "rows", "max_rounds": 1}, task.workspace) as judge:
        plays = replay(judge, [sample for sample, _ in asked], gold, 8)
    failed = {int(sample.id) for (sample, _), (verdict, _) in zip(asked, plays, strict=True) if not verdict.passed}
    named = [NOT_MYSQL, NO_SUCH_TABLE, NO_SUCH_COLUMN, LABEL_NONE, SEVERAL_CELLS, OTHER_VALUE]
    assert failed == {one for ids in named for one in ids}
    assert len(asked) - len(failed) == 30


def test_faulty_tables_are_as_in_agentbench(task: DbTask, samples: list[Sample]) -> None:
    def look(sample: Sample) -> list[str]:
        return [operation(f"SELECT * FROM `{sample.record['table']['table_name']}`"), "ok"]

    said = [messages[4]["content"] for _, messages in replay(task, samples, look, 8)]
    assert {i for i, text in enumerate(said) if text.startswith("1146 (42S02)")} == {
        i for i, t in FAULTY.items() if t is None
    }
    assert {i for i, text in enumerate(said) if text == "[]"} == {i for i, table in FAULTY.items() if table == ()}
