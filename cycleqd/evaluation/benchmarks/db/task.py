"""AgentBench's DBBench: a model answers a question about a table, or changes it, by SQL over several rounds.

One sample, from the conversation to the verdict:

    user       You work on a MySQL database ... (the rules of the game)
    assistant  Ok.
    user       Add a boat Zoe with 4 seats.
               The name of this table is boats, and the headers of this table are name,seats.
    assistant  I insert the row. Action: Operation
               ```sql
               INSERT INTO boats VALUES ('Zoe', '4')
               ```
    user       []
    assistant  Action: Answer
               Final Answer: ["done"]

The table now hashes to the record's `answer_md5`: passed. Had the question only asked for something, the final answer
would have been compared with the record's `label`. docs/benchmarks-db.md says what differs from AgentBench.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.benchmarks.db.mariadb.answers import Answer
from cycleqd.evaluation.benchmarks.db.mariadb.box import SERVER_BYTES, TEMPORARY_BYTES, missing
from cycleqd.evaluation.benchmarks.db.mariadb.database import RESERVED, Database, Databases, quoted
from cycleqd.evaluation.benchmarks.db.mariadb.guard import StatementLimits
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.benchmarks.inputs import (
    BenchmarkSettings,
    filled,
    json_lines,
    named_rounds,
    selected,
    single_file,
)
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace
from cycleqd.outside import parse_json

INSTRUCTIONS = """You answer a question by working on a MySQL database with SQL.
First explain the problem and how you want to solve it. Then, in every round, choose to operate or to answer.
To operate, write exactly:
Action: Operation
```sql
SELECT * FROM table WHERE condition;
```
The SQL MUST be in such a markdown block, on one line, without comments. Only the statement in the first SQL block of a
round is executed, one statement a round; its raw MySQL output is my next message.
When you are done and sure of your answer, write exactly:
Action: Answer
Final Answer: ["ANSWER1", "ANSWER2", ...]
The answer must be exactly the correct one. If you were asked to change the database, the answer may be anything once
it is changed. A reply that follows neither form fails at once.
"""
CHANGES = ("INSERT", "UPDATE", "DELETE")
SHOWN = 800
"""Characters of an answer that the model sees."""


class DbSettings(BenchmarkSettings):
    """Settings of the DB task, all optional."""

    task: ClassVar[str] = "DB"

    ids: Any = None
    """Which records to use: a list of 0-based positions, or the name of a JSON file with one in the data's folder."""
    max_rounds: int = Field(5, ge=1)
    """How many statements an episode may run; "paper" is 5 as in CycleQD's code, "agentbench" that project's 15."""
    prompt: str | None = None
    """A `str.format` template over the record's fields, which replaces the three messages by one."""
    judge: Literal["agentbench", "rows"] = "agentbench"
    """By AgentBench's rules; or "rows": questions are judged by the rows of the last statement."""
    _rounds = field_validator("max_rounds", mode="before")(named_rounds(paper=5, agentbench=15))
    seconds: float = Field(5.0, gt=0)
    """Time that a statement may take, without what it waits for a processor."""


class DbEpisode(Episode):
    """The conversation about one table. `answer` is the text of the final answer, None while there is none."""

    def __init__(
        self, sample: Sample, messages: Sequence[Message], database: Database, rounds: int, one_reply: bool
    ) -> None:
        super().__init__(sample, messages)
        self.database = database
        self.answer: str | None = None
        self.last: Answer | None = None
        self._rounds = rounds
        self._one_reply = one_reply

    def next(self, reply: str) -> list[Message] | None:
        """Run the statement of an operation and return the conversation with its output; None after anything else."""
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})
        action = re.search(r"Action: (.*?)\n", reply)
        if action is None or action.group(1) != "Operation" or self._rounds == 0:
            final = re.search(r"\nFinal Answer:(.*)", reply)
            self.answer = final.group(1) if final else None
            return None
        block = re.search(r"```sql\n([\s\S]*?)\n```", reply)
        if block is None:
            return None
        self.last = self.database.execute(block.group(1).strip().replace("\n", " "))
        self._rounds -= 1
        self.messages.append({"role": "user", "content": shown(self.last.text)})
        if self.last.exceeded or (self._one_reply and self._rounds == 0):
            return None
        return self.messages

    def close(self) -> None:
        """Remove the sample's database and account."""
        self.database.drop()


class DbTask(Task):
    """DBBench on a private MariaDB server. The data are DBBench's JSON lines; a sample's id is its 0-based position."""

    method_version = 2

    def __init__(self, settings: Mapping[str, Any], workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._options = DbSettings.read(settings)
        self._limits = StatementLimits(seconds=self._options.seconds)

    def preflight(self) -> list[str]:
        """What is missing for the private server, with the way to get it."""
        return missing()

    @classmethod
    def memory(cls, settings: Mapping[str, Any], workers: int) -> int:
        """A session for each worker, the server's own caches, and what sessions spill."""
        return workers * StatementLimits().memory + SERVER_BYTES + TEMPORARY_BYTES

    def __enter__(self) -> Self:
        """Start the server."""
        with ExitStack() as stack:
            self.server = stack.enter_context(MariaDB(self.workspace.scratch))
            self._databases = stack.enter_context(Databases(self.server, self._limits))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, data: Path) -> list[Sample]:
        """Read the JSON lines of a file, or of the only one in a folder.

        Raises:
            InvalidInputError: A record is broken; the message names it and the fault.
        """
        file = single_file(data, ".jsonl")
        lines = json_lines(file)
        samples = []
        names: set[str] = set()
        for position, line in enumerate(lines):
            record = _checked(line, f"{file}, record {position}")
            name = _database_name(record["table"]["table_name"], names)
            names.add(name)
            samples.append(Sample(str(position), record | {"database": name}, _group(record)))
        return selected(samples, self._options.ids, file)

    def start(self, sample: Sample) -> DbEpisode:
        """Create the sample's database and ask its question."""
        record, messages = sample.record, self._messages(sample)
        table = record["table"]
        columns = [column["name"] for column in table["table_info"]["columns"]]
        database = self._databases.open(record["database"], table["table_name"], columns, table["table_info"]["rows"])
        return DbEpisode(sample, messages, database, self._options.max_rounds, one_reply=self._by_rows)

    def overflow(self, episode: Episode) -> Verdict:
        """As AgentBench: a change is judged by the table, a question has no answer."""
        verdict = self.verdict(episode)
        return verdict if verdict.passed else Verdict(Outcome.ERROR, f"context overflow; {verdict.reason}")

    def verdict(self, episode: Episode) -> Verdict:
        """Judge by the table's hash (changes), by the final answer, or by the last statement's rows (`judge: rows`)."""
        assert isinstance(episode, DbEpisode)
        last = episode.last
        if last is not None and last.exceeded:
            return Verdict(Outcome.TIMEOUT if last.exceeded == "time" else Outcome.ERROR, last.error)
        passed, reason = self._judged(episode)
        if passed:
            return Verdict(Outcome.PASSED, reason)
        if last is not None and last.error:
            return Verdict(Outcome.ERROR, f"{reason}; the last statement failed: {_line(last.error)}")
        if episode.answer is None and (last is None or not (self._by_rows or episode.sample.group in CHANGES)):
            return Verdict(Outcome.FORMAT, f"{reason}; neither an operation nor a final answer in the required form")
        return Verdict(Outcome.WRONG, reason)

    @property
    def _by_rows(self) -> bool:
        return self._options.judge == "rows"

    def _messages(self, sample: Sample) -> list[Message]:
        record = sample.record
        if self._options.prompt is not None:
            return [{"role": "user", "content": filled(self._options.prompt, record, f"record {sample.id}")}]
        return [
            {"role": "user", "content": INSTRUCTIONS},
            {"role": "assistant", "content": "Ok."},
            {"role": "user", "content": f"{record['description']}\n{record['add_description']}"},
        ]

    def _judged(self, episode: DbEpisode) -> tuple[bool, str]:
        record = episode.sample.record
        if episode.sample.group in CHANGES:
            return _state_matches(episode.database, record)
        if self._by_rows:
            cells = [str(cell) for row in (episode.last.rows if episode.last else ()) for cell in row]
            return same_cells(cells, record["label"]), "compared the last statement's rows with the label"
        if episode.answer is None:
            return False, "there is no final answer"
        return same_answer(parsed(episode.answer), record["label"]), "compared the final answer with the label"


def shown(text: str) -> str:
    """What the model sees of an answer: its beginning, and a mark when there was more.

    Args:
        text: The answer; 800 characters of it are shown.
    """
    return text if len(text) <= SHOWN else text[:SHOWN] + "[TRUNCATED]"


def parsed(answer: str) -> list[Any]:
    """A final answer as a list: a Python literal's items, or the text itself when it is no literal with items.

    Args:
        answer: The text after "Final Answer:".
    """
    try:
        return list(ast.literal_eval(answer))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return [answer]


def same_answer(answer: Sequence[Any], label: Sequence[str]) -> bool:
    """Compare an answer with the label, as AgentBench does.

    Single items are equal as numbers if both are numbers, else as they are; several are equal as sets.

    Args:
        answer: The items that the model gave.
        label: The items that are right.
    """
    if len(answer) == 1 and len(label) == 1:
        try:
            return float(answer[0]) == float(label[0])
        except (ValueError, TypeError, OverflowError):
            return bool(answer[0] == label[0])
    try:
        return set(answer) == set(label)
    except TypeError:  # a list in the list
        return False


def same_cells(cells: Sequence[str], label: Sequence[str]) -> bool:
    """As `same_answer`, but several are equal only if each occurs as often: rows have no order, yet may repeat.

    Args:
        cells: The cells of all rows, row by row.
        label: The items that are right.
    """
    return same_answer(cells, label) and (len(label) == 1 == len(cells) or Counter(cells) == Counter(label))


def table_md5(rows: Iterable[Sequence[str | None]]) -> str:
    """The `answer_md5` of a table, as the server would give it. For making records.

    Args:
        rows: The table's rows, in any order, each a text or None (NULL) a column.
    """
    texts = (",".join(cell for cell in row if cell is not None) for row in rows)
    hashes = sorted(hashlib.md5(text.encode()).hexdigest()[:5] for text in texts)
    return str([(hashlib.md5(",".join(hashes).encode()).hexdigest() if hashes else None,)])


def _state_matches(database: Database, record: Mapping[str, Any]) -> tuple[bool, str]:
    """Compare the table's hash with the record's; read by the sample's own account, so what it reads gains nothing."""
    columns = ",".join(quoted(column["name"]) for column in record["table"]["table_info"]["columns"])
    table = quoted(record["table"]["table_name"])
    found = database.execute(
        "SELECT MD5(GROUP_CONCAT(rowhash ORDER BY rowhash)) FROM "
        f"(SELECT SUBSTRING(MD5(CONCAT_WS(',', {columns})), 1, 5) AS rowhash FROM {table}) AS sub"
    )
    if found.error:
        return False, "the table cannot be read any more"
    return found.text == record["answer_md5"], "compared the table's contents with the expected hash"


def _group(record: Mapping[str, Any]) -> str:
    kind = str(record["type"][0])
    return kind if kind in CHANGES else "SELECT"


def _line(text: str) -> str:
    return shown(" ".join(text.split()))


def _database_name(table: str, taken: set[str]) -> str:
    """The table's own name, as in AgentBench, numbered where an earlier record has it already."""
    usable = 0 < len(table) <= 60 and table.lower() not in RESERVED and not re.search(r"[\\/\x00-\x1f]|[\s.]$", table)
    base = table if usable else "sample"
    names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = parse_json(line)
        info = record["table"]["table_info"]
        _ = [column["name"] for column in info["columns"]], [list(row) for row in info["rows"]]
        needed = {"description": str, "type": list}
        needed |= {"answer_md5": str} if _group(record) in CHANGES else {"label": list}
        wrong = [name for name, kind in needed.items() if not isinstance(record[name], kind)]
        if wrong or not isinstance(record["table"]["table_name"], str):
            raise InvalidInputError(
                f"{where} has a {(wrong or ['table_name'])[0]} of the wrong type: see DBBench's format."
            )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidInputError(f"{where} is not a DBBench record ({error!r}): correct the file.") from error
    return record | {"add_description": record.get("add_description", "")}
