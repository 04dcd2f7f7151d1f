"""Replies dressed and damaged in every way that models do, from reply to verdict, against AgentBench's rules.

The rules are written down here once more, as tables of what counts, and not by the expressions of the code under test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cycleqd.evaluation.benchmarks.db.task import DbEpisode, DbSettings, DbTask, parsed, same_answer
from cycleqd.evaluation.benchmarks.os.rules import Action, action, shown
from cycleqd.evaluation.benchmarks.os.task import OsEpisode, OsSettings, OsTask
from cycleqd.evaluation.task import Outcome, Sample, Workspace
from tests.evaluation.benchmarks.test_db_attacks import GOLD

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

# OS: the last line after "Act:" that begins with one of three words, in any case

WORDS = {"bash": Action.BASH, "Bash it": Action.BASH, "FINISH": Action.FINISH, "finished.": Action.FINISH}
ANSWERS = {"answer(8)": "8", "Answer( 8 )!": " 8 ", "answer: (a(b)c) d": "a(b)c", "answer((": None, "answer 8": None}
OTHERS = ["", "think", "`bash`", "ls -l", "the answer(8)"]
SPACES = ["Act: ", "Act:", "Act:\t", "Act:\n", "Act:\n\n  ", "- Act: ", "Act: Act: "]
BLOCKS = [
    "```bash\nls\n```",
    "```bash\nls\n\npwd\n```",
    "```sh\nls\n```",
    "```bash\nls",
    "```bash ls```",
    "```\nls\n```",
]
KEPT = {"```bash\nls\n```": "ls", "```bash\nls\n\npwd\n```": "ls\n\npwd"}


@given(st.lists(st.tuples(st.sampled_from(SPACES[:-1]), st.sampled_from([*WORDS, *ANSWERS, *OTHERS[1:]])), max_size=4),
       st.lists(st.sampled_from(BLOCKS[:3]), max_size=3))  # fmt: skip
def test_the_last_action_that_can_be_read_counts(acts: list[tuple[str, str]], blocks: list[str]) -> None:
    lines = [f"Think: so.\n\n{space}{words}\n" for space, words in acts]
    expected: tuple[Action, str] = (Action.NONE, "")
    for _, words in acts:
        if words in WORDS:
            content = "\n\n".join(KEPT[block] for block in blocks if block in KEPT)
            expected = (WORDS[words], content if WORDS[words] is Action.BASH else "")
        elif ANSWERS.get(words) is not None:
            expected = (Action.ANSWER, str(ANSWERS[words]))
    assert action("\n".join([*lines, *blocks])) == expected


@given(st.text(), st.lists(st.sampled_from([*SPACES, *WORDS, *ANSWERS, *OTHERS, *BLOCKS, "\r", "\n", "\ud800", "ä"])))
def test_any_text_is_one_of_the_actions(text: str, parts: list[str]) -> None:
    kind, content = action(text + "".join(parts))
    assert kind in Action and (kind in (Action.BASH, Action.ANSWER) or content == "")


@given(st.text(min_size=0, max_size=2000))
def test_outputs_are_cut_as_there(output: str) -> None:
    said = shown(output)
    if not output:
        assert said == "The output of the OS is empty."
    elif len(output) <= 800:
        assert said == "The output of the OS:\n\n" + output
    else:
        assert said == "The output of the OS:\n\n" + output[:780] + "\n[truncated because the output is too long]"


@pytest.fixture(scope="module")
def os_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OsTask]:
    made = OsTask({"root": "host"}, Workspace(tmp_path_factory.mktemp("os")))
    if missing := made.preflight():
        pytest.skip(" ".join(missing))
    with made:
        yield made


MATCHED: dict[str, Any] = {"init_script": [], "start": None, "check": [], "example_script": None, "description": "x"}
RECORDS: list[tuple[dict[str, Any], dict[str, bool]]] = [
    ({"answer": "8", "strip": True}, {"8": True, " 8\n": True, "": False, "88": False}),
    ({"answer": "8", "strip": False}, {"8": True, " 8": False}),
    ({"answer": "", "strip": True}, {"": True, "  ": True, "x": False}),
    ({"regex": "^[0-9]*$", "strip": True}, {"": True, "12": True, "a": False, " 1 ": True}),
]


@pytest.mark.parametrize(("match", "answers"), RECORDS)
def test_matches_are_judged_as_there(os_task: OsTask, match: dict[str, Any], answers: dict[str, bool]) -> None:
    """And a task that is finished without an answer is failed, whatever the record takes."""
    record = {**MATCHED, "match": match, "problem": [{"role": "user", "content": "x"}]}
    for reply, right in [("Act: finish", False), *((f"Act: answer({text})", right) for text, right in answers.items())]:
        if "\n" in reply:
            continue  # an action is one line
        episode: OsEpisode = os_task.start(Sample("0", record))
        assert episode.next(reply) is None
        assert os_task.verdict(episode).passed is right, reply


CHECKED = {**MATCHED, "match": None, "check": [None, ["python", "import sys\nsys.exit(sys.argv[1] != 'x' * 3)"]]}


@pytest.mark.parametrize("answer", ["\U0001f600" * 20000, "\ud800", "a" * 40000, "\\" * 30000, "ä" * 30000, "-c", "'; exit 0"])  # fmt: skip  # noqa: E501
def test_an_answer_of_any_form_fails_by_itself(os_task: OsTask, answer: str) -> None:
    record = {**CHECKED, "example_script": ("bash", "echo 1"), "problem": [{"role": "user", "content": "x"}]}
    episode: OsEpisode = os_task.start(Sample("0", record))
    assert episode.next(f"Act: answer({answer})") is None
    assert os_task.verdict(episode).outcome is Outcome.WRONG
    right: OsEpisode = os_task.start(Sample("1", record))
    right.next("Act: answer(xxx)")
    assert os_task.verdict(right).passed


# DB: the first "Action:" with a space behind it and a line's end after it; of an operation the first sql block


class Recorded:
    """A database that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def execute(self, sql: str) -> Any:
        from cycleqd.evaluation.benchmarks.db.mariadb.answers import Answer

        self.asked.append(sql)
        return Answer(rows=(("1",),))


ACTIONS = ["Action: Operation", "Action: Answer", "Action:Operation", "Action: operation", "Action: Operation ", "action: Operation"]  # fmt: skip  # noqa: E501
SQL = [
    "```sql\nSELECT 1\n```",
    "```sql\nSELECT\n  2\n```",
    "```SQL\nSELECT 3\n```",
    "```sql SELECT 4```",
    "```sql\nSELECT 5",
]
RUN = {SQL[0]: "SELECT 1", SQL[1]: "SELECT   2"}
FINALS = ["Final Answer: [1]", "Final Answer:", "final answer: x", "Final Answer: [\"a\", 'b']", "Final Answer: 1 + 1"]


@given(st.lists(st.sampled_from([*ACTIONS, *SQL[:4], *FINALS, "", "I think so."]), max_size=6), st.integers(0, 2))
def test_a_reply_is_an_operation_or_an_answer(parts: list[str], rounds: int) -> None:
    reply = "\n".join([*parts, ""])
    database = Recorded()
    episode = DbEpisode(Sample("0", {}), [{"role": "user", "content": "x"}], database, rounds, one_reply=False)  # type: ignore[arg-type]  # fmt: skip
    goes_on = episode.next(reply) is not None
    first = next((part for part in parts if part.startswith("Action: ")), None)
    if first == "Action: Operation" and rounds:
        block = next((RUN[part] for part in parts if part in RUN), None)
        assert database.asked == ([] if block is None else [block])
        assert goes_on is (block is not None) and episode.answer is None
    else:
        final = next((part for part in parts[1:] if part.startswith("Final Answer:")), None)
        assert not goes_on and database.asked == []
        assert episode.answer == (None if final is None else final.removeprefix("Final Answer:"))


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def official(answer: str, label: list[str]) -> bool:
    """What AgentBench makes of an answer: its items where it is a literal that has some, else one text."""
    try:
        items = list(ast.literal_eval(answer.strip(" \t")))
    except Exception:
        items = [answer]
    if len(items) == len(label) == 1:
        try:
            return float(items[0]) == float(label[0])
        except (ValueError, TypeError):
            return bool(items[0] == label[0])
    try:
        return set(items) == set(label)
    except TypeError:
        return False


@given(st.one_of(literals.map(repr), literals.map(lambda value: f" {value!r}"), st.text(max_size=20)), st.data())
def test_answers_are_compared_as_there(answer: str, data: st.DataObject) -> None:
    items = parsed(answer)
    label = data.draw(st.lists(st.text(max_size=4), max_size=3) | st.just([str(item) for item in items]))
    assert same_answer(parsed(answer), label) is official(answer, label)


@given(st.text(max_size=50))
def test_no_answer_breaks_the_judge(text: str) -> None:
    for answer in (text, f"[{text}]", "[" * 1000 + text, f"{{{text}}}", "9" * 5000, "[1e999]", "-" * 5000 + "1"):
        assert same_answer(parsed(answer), ["the label"]) in (True, False)


@pytest.fixture(scope="module")
def db_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbTask]:
    made = DbTask({}, Workspace(tmp_path_factory.mktemp("db")))
    if lacks := made.preflight():
        pytest.skip(lacks[0])
    with made:
        yield made


DRESSES = ["{}", "Sure!\n\n{}\n\nThat is all.", "Thought: I change it.\n{}", "{}\n\nAction: Answer\nFinal Answer: [1]"]
ENDS = ["Action: Answer\nFinal Answer: ok", "done", "", "Action: Operation\nno block", "Final Answer: 3", "\x00\ud83d"]


@settings(max_examples=12, suppress_health_check=QUIET, deadline=None)
@given(st.sampled_from(DRESSES), st.sampled_from(ENDS), st.booleans())
def test_a_change_is_judged_by_the_table_whatever_is_said_after(
    db_task: DbTask, dress: str, end: str, right: bool
) -> None:
    value = "3" if right else "4"
    episode: DbEpisode = db_task.start(Sample("0", GOLD, "UPDATE"))
    try:
        operation = f"Action: Operation\n```sql\nUPDATE boats SET\nb = '{value}'\n```"
        assert episode.next(dress.format(operation)) is not None
        assert episode.next(end) is None
        assert db_task.verdict(episode).passed is right
    finally:
        episode.close()


@pytest.mark.parametrize(("kind", "most"), [(DbSettings, 15), (OsSettings, 8)])
def test_rounds_have_names(kind: type[DbSettings] | type[OsSettings], most: int) -> None:
    found = [kind.read({"max_rounds": rounds}).max_rounds for rounds in ("paper", "agentbench", 3)]
    assert found == [5, most, 3]
    assert kind.read({}).max_rounds == 5
    with pytest.raises(Exception, match="max_rounds is 'many'"):
        kind.read({"max_rounds": "many"})
