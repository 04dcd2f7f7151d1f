"""Statements that end the database server, or keep it: their own sample pays, and the others go on where they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cycleqd.evaluation.benchmarks.db.mariadb.box import missing
from cycleqd.evaluation.benchmarks.db.mariadb.database import Databases
from cycleqd.evaluation.benchmarks.db.mariadb.guard import StatementLimits
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.benchmarks.db.task import DbTask
from cycleqd.evaluation.engines import Completion, Progress, Request, Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.task import Message, Outcome, Sample, Workspace
from tests.evaluation.benchmarks.test_db_attacks import GOLD
from tests.scripted import Scripted

XML = "SELECT EXTRACTVALUE('<a/>', CONCAT(REPEAT('-', 100000), '1'))"
"""Its parser recurses once a minus, until the thread's stack is full: MariaDB 10.11 ends."""
ENDLESS = "REPEAT('ab', 131000)"
for _ in range(9):
    ENDLESS = f"REGEXP_REPLACE({ENDLESS}, 'a|b', '\\\\0')"


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    if lacks := missing():
        pytest.skip(lacks[0])
    with MariaDB(tmp_path) as server, Databases(server, StatementLimits(seconds=2)) as made:
        yield made


def test_a_statement_that_ends_the_server_is_its_own_samples_error(databases: Databases) -> None:
    innocent = databases.open("innocent", "t", ["a"], [["1"]])
    guilty = databases.open("guilty", "t", ["a"], [["1"]])
    assert not innocent.execute("INSERT INTO t VALUES ('2')").error
    answer = guilty.execute(XML)
    assert (answer.error, answer.exceeded) == ("the statement ended the database server", "server")
    assert databases.server.generation == 3  # begun anew to find out, and after it
    guilty.drop()
    assert not innocent.execute("UPDATE t SET a = '3' WHERE a = '1'").error
    assert sorted(innocent.execute("SELECT * FROM t").rows) == [("2",), ("3",)]
    innocent.drop()
    fresh = databases.open("guilty", "t", ["a"], [["1"]])
    assert fresh.execute("SELECT * FROM t").rows == (("1",),)


def test_statements_that_ran_beside_it_have_their_answers(databases: Databases) -> None:
    others = [databases.open(f"s{number}", "t", ["a"], [[str(number)]]) for number in range(4)]
    guilty = databases.open("guilty", "t", ["a"], [["1"]])
    with ThreadPoolExecutor(5) as pool:
        slow = [pool.submit(one.execute, "INSERT INTO t SELECT SLEEP(0.5)") for one in others]
        attack = pool.submit(guilty.execute, XML)
        assert attack.result().exceeded == "server"
        assert [one.result().error for one in slow] == [""] * 4
    for number, one in enumerate(others):
        assert one.execute("SELECT * FROM t").rows == ((str(number),), ("0",))
        one.drop()


def test_a_statement_that_cannot_be_stopped_ends_with_its_server(databases: Databases) -> None:
    innocent = databases.open("innocent", "t", ["a"], [["1"]])
    guilty = databases.open("guilty", "t", ["a"], [["1"]])
    assert guilty.execute(f"SELECT LENGTH({ENDLESS}) FROM t").exceeded == "time"
    guilty.drop()
    assert innocent.execute("SELECT * FROM t").rows == (("1",),)
    with databases.server.admin() as admin, admin.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER LIKE 'u%'")
        assert cursor.fetchone() == (0,)


def test_a_server_without_free_connections_begins_anew(databases: Databases) -> None:
    database = databases.open("one", "t", ["a"], [["1"]])
    held = [databases.server.admin() for _ in range(201)]
    other = databases.open("two", "t", ["a"], [["2"]])
    assert other.execute("SELECT * FROM t").rows == (("2",),)
    assert database.execute("SELECT * FROM t").rows == (("1",),)
    assert databases.server.generation == 2
    del held


class Cycling(Scripted):
    """Answers each sample with the next of its texts; a prompt with "overflow" does not fit."""

    def __init__(self, texts: dict[str, list[str]]) -> None:
        super().__init__()
        self.texts = {name: iter(replies) for name, replies in texts.items()}

    def reply(self, conversation: Sequence[Message]) -> str:
        return next(self.texts[conversation[0]["content"]])

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        return [
            Completion("", "overflow", 9, 0) if text == "overflow" else Completion(text, "stop", 1, 1)
            for text in (self.reply(request.conversation) for request in requests)
        ]


def sql(statement: str) -> str:
    return f"Action: Operation\n```sql\n{statement}\n```"


RIGHT, WRONG, DONE = (
    sql("UPDATE boats SET b = '3'"),
    sql("UPDATE boats SET b = '4'"),
    "Action: Answer\nFinal Answer: ok",
)
PLAYS = {
    "right": ([RIGHT, DONE], Outcome.PASSED),
    "right, overflowing": ([RIGHT, "overflow"], Outcome.PASSED),
    "wrong, overflowing": ([WRONG, "overflow"], Outcome.ERROR),
    "overflowing at once": (["overflow"], Outcome.ERROR),
    "ends the server": ([sql(XML), DONE], Outcome.ERROR),
    "right beside it": ([RIGHT, sql("SELECT * FROM boats"), DONE], Outcome.PASSED),
}


def test_all_other_samples_of_an_evaluation_keep_their_verdicts(tmp_path: Path) -> None:
    samples = [Sample(name, {**GOLD, "database": f"d{n}"}, "UPDATE") for n, name in enumerate(PLAYS)]
    for sample in samples:
        sample.record["description"] = sample.id  # type: ignore[index]
    with DbTask({"prompt": "{description}"}, Workspace(tmp_path, 3)) as task:
        if lacks := task.preflight():
            pytest.skip(lacks[0])
        engine = Cycling({name: replies for name, (replies, _) in PLAYS.items()})
        found = evaluate(engine, task, samples, Sampling(max_tokens=9), workers=3)
    assert {record.id: record.outcome for record in found.records} == {name: end for name, (_, end) in PLAYS.items()}
    assert found.records[4].reason == "the statement ended the database server"


def test_an_overflow_of_a_question_is_an_error(tmp_path: Path) -> None:
    record = {**GOLD, "type": ["other"], "label": ["2"], "description": "q"}
    with DbTask({"prompt": "{description}"}, Workspace(tmp_path)) as task:
        engine = Cycling({"q": [sql("SELECT b FROM boats"), "overflow"]})
        found = evaluate(engine, task, [Sample("q", record, "SELECT")], Sampling(max_tokens=9), workers=1)
    assert found.records[0].outcome is Outcome.ERROR and found.records[0].reason.startswith("context overflow")
