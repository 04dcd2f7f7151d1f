"""Tasks of the container test: the code and the DB benchmark, answered by somebody who knows the answers.

Models of two layers write letters without meaning. Their checksum decides whether the reference solution or a wrong one
is judged in their place, by the real judges: boxed Python and a private MariaDB server.
"""

import zlib

from components.evaluate.benchmarks.code import CodeTask
from components.evaluate.benchmarks.db import DbTask
from components.evaluate.task import Episode, Message, Sample, SingleTurn


def _lucky(reply: str) -> bool:
    return zlib.crc32(reply.encode()) % 5 < 3


class _Coder(SingleTurn):
    def next(self, reply: str) -> None:
        name, solution = self.sample.record["entry_point"], self.sample.record["canonical_solution"]
        super().next(f"```python\n{solution if _lucky(reply) else f'def {name}(*given): return None'}\n```")


class Code(CodeTask):
    """Small MBPP+ records."""

    def start(self, sample: Sample) -> Episode:
        return _Coder(sample, super().start(sample).messages)


class _Clerk(Episode):
    """Answers in the place of the model; what the judge looks at is the episode inside."""

    def __init__(self, inner: Episode) -> None:
        super().__init__(inner.sample, inner.messages)
        self.inner = inner

    def next(self, reply: str) -> list[Message] | None:
        self.replies.append(reply)
        record = self.sample.record
        right = record["sql"]["query"] if "sql" in record else record["label"][0]
        return self.inner.next(f"Action: Operation\n```sql\n{right if _lucky(reply) else 'SELECT 1'}\n```")

    def close(self) -> None:
        self.inner.close()


class Db(DbTask):
    """Small DBBench records, of one statement each."""

    def start(self, sample: Sample) -> Episode:  # type: ignore[override]
        return _Clerk(super().start(sample))

    def verdict(self, episode: Episode):  # type: ignore[no-untyped-def]
        return super().verdict(episode.inner)
