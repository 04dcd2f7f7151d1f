"""Tasks and answers of the container test: the code and the DB benchmark, answered by somebody who knows the answers.

Models of two layers write letters without meaning. Their checksum decides whether the reference solution or a wrong one
is judged in their place, by the real judges: boxed Python and a private MariaDB server.
"""

import zlib

from cycleqd.evaluation.benchmarks.code.task import CodeTask
from cycleqd.evaluation.benchmarks.db.task import DbTask
from cycleqd.evaluation.task import Episode, Message, Sample, SingleTurn


def code_answer(sample: Sample, right: bool = True) -> str:
    """A reply with the reference solution, or a function that returns None, in one of the forms that models use."""
    name, solution = sample.record["entry_point"], sample.record["canonical_solution"]
    code = solution if right else f"def {name}(*given):\n    return None"
    return f"<think>It's short.</think>\nHere it is:\n```py\n{code}\n\nprint({name})\n```"


def db_answer(sample: Sample, right: bool = True) -> str:
    """A reply with the record's statement, or with one that answers nothing."""
    record = sample.record
    statement = record["sql"]["query"] if "sql" in record else record["label"][0]
    return f"Action: Operation\n```sql\n{statement if right else 'SELECT 1'}\n```"


def os_answer(episode: Episode) -> str:
    """The record's answer or example script; after its output, what that says."""
    record = episode.sample.record
    if record["match"]:
        return f"Act: answer({record['match'].get('answer', 'heron')})"
    if len(episode.messages) == len(record["problem"]):
        return f"Act: bash\n```bash\n{record['example_script'][1]}\n```"
    return f"Act: answer({episode.messages[-1]['content'].splitlines()[-1]})"


def _lucky(reply: str) -> bool:
    return zlib.crc32(reply.encode()) % 5 < 3


class _Coder(SingleTurn):
    def next(self, reply: str) -> None:
        super().next(code_answer(self.sample, _lucky(reply)))


class Code(CodeTask):
    """Small MBPP+ records."""

    def start(self, sample: Sample) -> Episode:
        """The benchmark's question, answered by somebody who knows."""
        return _Coder(sample, super().start(sample).messages)


class _Clerk(Episode):
    """Answers in the place of the model; what the judge looks at is the episode inside."""

    def __init__(self, inner: Episode) -> None:
        super().__init__(inner.sample, inner.messages)
        self.inner = inner

    def next(self, reply: str) -> list[Message] | None:
        self.replies.append(reply)
        return self.inner.next(db_answer(self.sample, _lucky(reply)))

    def close(self) -> None:
        self.inner.close()


class Db(DbTask):
    """Small DBBench records, of one statement each."""

    def start(self, sample: Sample) -> Episode:  # type: ignore[override]
        """The benchmark's question, answered by somebody who knows."""
        return _Clerk(super().start(sample))

    def verdict(self, episode: Episode):  # type: ignore[no-untyped-def]
        """The benchmark's verdict on the answers given in the model's place."""
        return super().verdict(episode.inner)
