"""DBBench's protocol and verdicts on a small data set of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.benchmarks.db.mariadb.box import missing
from cycleqd.evaluation.benchmarks.db.task import DbEpisode, DbTask, parsed, same_answer, shown, table_md5
from cycleqd.evaluation.task import Outcome, Sample, Verdict, Workspace

DATA = Path(__file__).parents[2] / "data" / "db_small.jsonl"
RECORDS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def operation(sql: str) -> str:
    return f"I look at the table.\nAction: Operation\n```sql\n{sql}\n```"


def answer(value: object) -> str:
    return f"I am sure.\nAction: Answer\nFinal Answer: {value}"


def gold_sql(record: dict[str, Any]) -> str:
    return str(record["sql"]["query"] if "sql" in record else record["label"][0])


def play(task: DbTask, sample: Sample, *replies: str) -> tuple[Verdict, DbEpisode]:
    episode = task.start(sample)
    try:
        for reply in replies:
            if episode.next(reply) is None:
                break
        return task.verdict(episode), episode
    finally:
        episode.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbTask]:
    if lacks := missing():
        pytest.skip(lacks[0])
    with DbTask({}, Workspace(tmp_path_factory.mktemp("db"), 2)) as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbTask]:
    if lacks := missing():
        pytest.skip(lacks[0])
    chosen = {"max_rounds": 1, "judge": "rows", "prompt": "{description} | {table[table_name]}"}
    with DbTask(chosen, Workspace(tmp_path_factory.mktemp("tiny"), 2)) as running:
        yield running


def test_the_conversation_opens_as_in_agentbench(task: DbTask) -> None:
    sample = task.load(DATA)[0]
    _, episode = play(task, sample, answer(["blue"]))
    first, second, third, _ = episode.messages
    assert [first["role"], second["role"], third["role"]] == ["user", "assistant", "user"]
    assert "Action: Operation\n```sql\n" in first["content"]
    assert 'Action: Answer\nFinal Answer: ["ANSWER1", "ANSWER2", ...]' in first["content"]
    assert second["content"] == "Ok."
    record = sample.record
    assert third["content"] == f"{record['description']}\n{record['add_description']}"


@pytest.mark.parametrize("position", range(len(RECORDS)))
def test_gold_passes(task: DbTask, position: int) -> None:
    sample = task.load(DATA)[position]
    verdict, episode = play(task, sample, operation(gold_sql(RECORDS[position])), answer(RECORDS[position]["label"]))
    assert verdict.passed, verdict
    assert len(episode.replies) == 2


@pytest.mark.parametrize("position", range(len(RECORDS)))
def test_gold_passes_in_one_round(tiny: DbTask, position: int) -> None:
    sample = tiny.load(DATA)[position]
    verdict, episode = play(tiny, sample, operation(gold_sql(RECORDS[position])))
    assert verdict.passed, verdict
    assert episode.messages[0]["content"] == f"{sample.record['description']} | {sample.record['table']['table_name']}"
    assert len(episode.replies) == 1


@pytest.mark.parametrize("position", range(len(RECORDS)))
@pytest.mark.parametrize(
    "replies",
    [
        [""],
        ["I do not know."],
        ["Action: Answer"],
        ["Action: Operation\nSELECT 1"],  # no block
        ["Action: Operation\n```sql\nSELECT 1```"],  # the block's end is not on a line of its own
        ["Action: Operation \n```sql\nSELECT 1\n```"],  # not exactly "Operation"
        ["```sql\nDELETE FROM boats\n```"],  # no action
        [answer("[]")],
        [answer('["nothing like it"]')],
        [answer('["blue", "Zoe", "Max", "16.0", "2", "extra"]')],
        [operation("SELEC"), answer("x")],
        [operation("SELECT 99"), answer([99])],
    ],
)
def test_wrong_and_malformed_fail(task: DbTask, tiny: DbTask, position: int, replies: list[str]) -> None:
    for judged in (task, tiny):
        verdict, _ = play(judged, judged.load(DATA)[position], *replies)
        assert not verdict.passed and "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("position", "replies", "outcome"),
    [
        (0, ["I do not know."], Outcome.FORMAT),
        (4, ["I do not know."], Outcome.FORMAT),
        (4, ["Action: Operation\nINSERT"], Outcome.FORMAT),
        (0, [answer(["red"])], Outcome.WRONG),
        (0, [operation("SELECT 1"), "hm"], Outcome.FORMAT),
        (4, [answer("done")], Outcome.WRONG),
        (4, [operation("SELECT 1"), "hm"], Outcome.WRONG),
        (4, [operation("INSERT INTO nowhere VALUES (1)"), answer("done")], Outcome.ERROR),
        (0, [operation("SELECT SLEEP(60)"), answer(["blue"])], Outcome.TIMEOUT),
    ],
)
def test_outcomes(task: DbTask, position: int, replies: list[str], outcome: Outcome) -> None:
    assert play(task, task.load(DATA)[position], *replies)[0].outcome is outcome


def test_a_change_counts_whatever_the_answer(task: DbTask) -> None:
    sample = task.load(DATA)[4]
    for last in (answer("[]"), "gibberish", "Action: Operation\nno block"):
        assert play(task, sample, operation(gold_sql(RECORDS[4])), last)[0].passed


def test_five_operations_and_six_generations(task: DbTask) -> None:
    sample = task.load(DATA)[0]
    five = [operation(f"SELECT {number}") for number in range(5)]
    verdict, episode = play(task, sample, *five, answer(["blue"]))
    assert verdict.passed and len(episode.replies) == 6
    verdict, episode = play(task, sample, *five, operation("SELECT 5"), answer(["blue"]))
    assert verdict.outcome is Outcome.FORMAT and len(episode.replies) == 6
    assert sum(message["role"] == "user" for message in episode.messages) == 2 + 5  # the sixth was not run


def test_the_sixth_generation_may_hold_both(task: DbTask) -> None:
    """AgentBench looks for the final answer in whatever is not run as an operation."""
    five = [operation("SELECT 1")] * 5
    sixth = operation("SELECT 1") + "\nFinal Answer: ['blue']"
    assert play(task, task.load(DATA)[0], *five, sixth)[0].passed


def test_statements_leave_their_effects_and_nothing_else(task: DbTask) -> None:
    sample = task.load(DATA)[0]
    _, episode = play(
        task,
        sample,
        operation("SET SESSION sql_mode = 'ANSI_QUOTES'"),
        operation('SELECT "name" FROM boats'),
        operation("INSERT INTO boats (name) VALUES ('Pia')"),
        operation("SELECT name\nFROM boats\nWHERE seats IS NULL;"),
        operation("SELECT * FROM boats WHERE name = 'Zoe'"),
    )
    said = [message["content"] for message in episode.messages[3:] if message["role"] == "user"]
    assert said == ["[]", "[('name',), ('name',), ('name',)]", "[]", "[('Pia',)]", "[('Zoe', '4', 'red')]"]


def test_only_the_first_block_is_run(task: DbTask) -> None:
    reply = "Action: Operation\n```sql\nSELECT 1\n```\n```sql\nSELECT 2\n```"
    _, episode = play(task, task.load(DATA)[0], reply)
    assert episode.messages[-1]["content"] == "[(1,)]"


def test_what_is_shown_is_cut_at_800_characters(task: DbTask) -> None:
    sample = task.load(DATA)[0]
    for length, cut in ((793, False), (794, True)):  # and seven for [('...',)]
        episode = play(task, sample, operation(f"SELECT REPEAT('é', {length})"))[1]
        text = episode.messages[-1]["content"]
        whole = f"[('{'é' * length}',)]"
        assert text == (whole[:800] + "[TRUNCATED]" if cut else whole)


def test_answers_look_like_python(task: DbTask) -> None:
    _, episode = play(
        task,
        task.load(DATA)[0],
        operation("SELECT NULL, 1.50, 2, 'it''s', 1e0, x'ff', DATE '2024-01-02'"),
        operation("SELECT * FROM boats WHERE 0"),
        operation("SELECT * FROM nowhere"),
    )
    said = [message["content"] for message in episode.messages[3:] if message["role"] == "user"]
    assert said == [
        "[(None, Decimal('1.50'), 2, \"it's\", 1.0, b'\\xff', datetime.date(2024, 1, 2))]",
        "[]",
        "1146 (42S02): Table 'boats.nowhere' doesn't exist",
    ]


@pytest.mark.parametrize(
    ("text", "label", "same"),
    [
        (' ["blue"]', ["blue"], True),
        (" ['blue']", ["blue"], True),
        ("blue", ["blue"], True),
        (" blue", ["blue"], False),  # AgentBench does not strip either
        (" 16", ["16.0"], True),
        (" [16]", ["16.0"], True),
        (' ["16.00"]', ["16.0"], True),
        (' ["1,6"]', ["1,6"], True),
        (' ["1,6"]', ["16"], False),
        (' ["Zoe", "Max"]', ["Max", "Zoe"], True),
        (' ("Max", "Zoe", "Max")', ["Max", "Zoe"], True),
        (' ["Max"]', ["Max", "Zoe"], False),
        (' [["Max", "Zoe"]]', ["Max", "Zoe"], False),
        (" [1, 2]", ["1", "2"], False),
        (" ['nan']", ["nan"], False),
        (" [0xf" + "f" * 400 + "]", ["1"], False),
        (" __import__('os').system('true')", ["0"], False),
        (" " + "[" * 5000, ["1"], False),
        (" " + "-" * 100_000 + "1", ["1"], False),
        (" \x00", ["1"], False),
        (" [None]", ["None"], False),
        (" {'a': 1}", ["a"], True),
    ],
)
def test_answers_are_compared_as_agentbench_does(text: str, label: list[str], same: bool) -> None:
    assert same_answer(parsed(text), label) is same


@pytest.mark.parametrize(
    ("statement", "passes"),
    [
        ("SELECT name FROM `Boat list 2024` WHERE seats > 3 ORDER BY name", True),
        ("SELECT MIN(name), MAX(name) FROM `Boat list 2024` WHERE seats > 3", True),
        ("SELECT name FROM `Boat list 2024` WHERE seats > 3 UNION ALL SELECT 'Max'", False),
        ("SELECT name, seats FROM `Boat list 2024` WHERE seats > 3", False),
        ("SELECT name FROM `Boat list 2024` WHERE seats > 10", False),
        ("SELECT name FROM `Boat list 2024` WHERE seats > 100", False),
    ],
)
def test_rows_are_compared_with_their_number(tiny: DbTask, statement: str, passes: bool) -> None:
    assert play(tiny, tiny.load(DATA)[2], operation(statement))[0].passed is passes


@given(st.text(max_size=900), st.lists(st.text(), max_size=3))
def test_any_answer_text_is_judged(text: str, label: list[str]) -> None:
    assert same_answer(parsed(text), label) in (True, False)
    assert shown(text) == text or (len(shown(text)) == 811 and len(text) > 800)


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.none()


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_table_md5_is_the_servers(task: DbTask, rows: list[tuple[str | None, str | None]]) -> None:
    record = {
        "description": "",
        "add_description": "",
        "type": ["UPDATE"],
        "answer_md5": table_md5(rows),
        "table": {"table_name": "t", "table_info": {"columns": [{"name": "a b"}, {"name": "c`"}], "rows": rows}},
        "database": "hash",
    }
    assert play(task, Sample("0", record, "UPDATE"), answer("done"))[0].passed


def test_groups_ids_and_databases(task: DbTask) -> None:
    samples = task.load(DATA)
    assert [sample.id for sample in samples] == [str(number) for number in range(len(RECORDS))]
    assert [sample.group for sample in samples] == ["SELECT"] * 4 + ["INSERT"] * 2 + ["UPDATE"] * 2 + ["DELETE"] * 2
    names = [sample.record["database"] for sample in samples]
    assert names[:2] == ["boats", "boats_2"] and len(set(names)) == len(names)


def test_explicit_ids(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(DATA.read_bytes())
    (folder / "ids.json").write_text("[4, 2]")
    everything = DbTask({}, Workspace(tmp_path)).load(folder)
    for ids in ([4, 2], "ids.json"):
        chosen = DbTask({"ids": ids}, Workspace(tmp_path)).load(folder)
        assert chosen == [everything[4], everything[2]]
    for wrong in ([99], "no.json", 7, "records.jsonl"):
        with pytest.raises(InvalidInputError, match=r"99|no\.json|7|records\.jsonl"):
            DbTask({"ids": wrong}, Workspace(tmp_path)).load(folder)


@pytest.mark.parametrize(
    "line",
    ["", "[]", "{}", '{"type": ["INSERT"]}', json.dumps(RECORDS[4] | {"answer_md5": 1}), json.dumps(RECORDS[0])[:-1]]
    + [json.dumps({name: value for name, value in RECORDS[0].items() if name != gone}) for gone in ("table", "label")],
)
def test_records_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(f"{json.dumps(RECORDS[0])}\n{line}\n")
    if not line:
        assert len(DbTask({}, Workspace(tmp_path)).load(data)) == 1
        return
    with pytest.raises(InvalidInputError, match="record 1"):
        DbTask({}, Workspace(tmp_path)).load(data)


@pytest.mark.parametrize("chosen", [{"judge": "me"}, {"max_rounds": 0}, {"round": 1}])
def test_unknown_settings_are_refused(tmp_path: Path, chosen: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        DbTask(chosen, Workspace(tmp_path))


def test_a_prompt_over_a_missing_field_is_refused(tmp_path: Path) -> None:
    task = DbTask({"prompt": "{descripton}"}, Workspace(tmp_path))
    with pytest.raises(InvalidInputError, match="record 0"):
        task.start(task.load(DATA)[0])


@pytest.mark.parametrize(
    ("columns", "rows", "error"),
    [
        (["a", "a"], [["1", "2"]], "1146 (42S02): Table 'odd.odd' doesn't exist"),
        (["", "b"], [["1", "2"]], "1146 (42S02): Table 'odd.odd' doesn't exist"),
        (["a", "b"], [["1", "2"], ["3"]], "[]"),
        (["a", "b"], [], "[]"),
        (["a b", "c-d+e`"], [[1, 2.0], [None, "ö"]], "[('1', '2.0'), (None, 'ö')]"),
    ],
)
def test_odd_tables_are_what_agentbench_makes_of_them(
    task: DbTask, columns: list[str], rows: list[list[Any]], error: str
) -> None:
    info = {"columns": [{"name": name} for name in columns], "rows": rows}
    record = RECORDS[0] | {"table": {"table_name": "odd", "table_info": info}, "database": "odd"}
    _, episode = play(task, Sample("0", record, "SELECT"), operation("SELECT * FROM odd"))
    assert episode.messages[-1]["content"] == error


@pytest.mark.parametrize("name", ["mysql", "sys", "Information_Schema", "a/b", "a\\b", "x" * 63, "dot.", ""])
def test_table_names_that_cannot_name_a_database(tmp_path: Path, name: str) -> None:
    record = RECORDS[0] | {"table": RECORDS[0]["table"] | {"table_name": name}}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n")
    assert DbTask({}, Workspace(tmp_path)).load(tmp_path)[0].record["database"] == "sample"
