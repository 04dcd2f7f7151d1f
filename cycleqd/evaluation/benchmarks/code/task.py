"""MBPP+ (EvalPlus): write one Python function; its return values on the tests are compared with the reference's.

One problem, as the model sees it, and an answer:

    Please provide a self-contained Python script that solves the following problem in a markdown code block:
    ```
    \"\"\"
    Write a function to find the shared elements from the given two lists.
    assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))
    \"\"\"
    ```

    ```python
    def similar_elements(a, b):
        return tuple(set(a) & set(b))
    ```

The first ```python block is the answer. It runs on the arguments of the base tests, and when these pass on those of the
plus tests, in a box that holds no expected value; what it returned comes back as data and is compared out here.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation import sandbox
from cycleqd.evaluation.benchmarks.code import problem as problems
from cycleqd.evaluation.benchmarks.code.execution import Boxes, References, suite_seconds
from cycleqd.evaluation.benchmarks.code.judge import Judged, judge
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite
from cycleqd.evaluation.sandbox import Limits
from cycleqd.evaluation.sandbox.limits import MIB
from cycleqd.evaluation.sandbox.turnstile import Turnstile
from cycleqd.evaluation.task import Episode, Outcome, Sample, SingleTurn, Task, Verdict, Workspace

_ANSWER = re.compile(r"```python[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_PROMPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{prompt}\n```"
)
_KINDS = {str: "use a text", int: "use a whole number above 0", float: "use a number above 0"}


@dataclass(frozen=True)
class Settings:
    """`prompt`: the user message, with {field} for the record's texts (stripped). `judge`: which tests must pass for a
    pass, "base" or "plus" (base and plus). `seconds` and `factor`: a call may take the larger of `seconds` and `factor`
    times the reference's processor time. `memory`: MiB for one answer. `max_rounds`: 1, a question and an answer."""

    prompt: str = _PROMPT
    judge: str = "plus"
    seconds: float = 1.0
    factor: float = 4.0
    memory: int = 4096
    max_rounds: int = 1

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """The settings of a configuration, checked. InvalidInputError on an unknown name or a value out of range."""
        unknown = sorted(set(values) - {known.name for known in fields(cls)})
        if unknown:
            raise InvalidInputError(
                f"A code task has no setting {', '.join(unknown)}: remove it from the task's settings."
            )
        for name, default in vars(cls()).items():
            value, kind = values.get(name, default), type(default)
            if not isinstance(value, (int, float) if kind is float else kind) or (kind is not str and value <= 0):
                raise InvalidInputError(f"The code task's `{name}` is {value!r}: {_KINDS[kind]}.")
        settings = cls(**values)
        if settings.judge not in ("base", "plus"):
            raise InvalidInputError(f'The code task\'s `judge` is {settings.judge!r}: use "base" or "plus".')
        if settings.max_rounds != 1:
            raise InvalidInputError(f"The code task's `max_rounds` is {settings.max_rounds}: it has one round, use 1.")
        return settings


class CodeTask(Task):
    """MBPP+ and any file in its format. Score: pass@1 of one answer a problem."""

    method_version = 1

    def __init__(self, settings: Mapping[str, Any], workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._settings = Settings.read(settings)
        self._limits = Limits(
            memory=self._settings.memory * MIB,
            address_space=max(4096, 2 * self._settings.memory) * MIB,
            processes=16,
            output=64 * MIB,
            cpu=600,
            wall=900,
        )
        cache = os.environ.get("CYCLEQD_CACHE")
        folder = Path(cache) / "references" if cache else workspace.scratch / "references"
        self._boxes = Boxes(workspace.workers)
        self._references = References(folder, self._boxes, self._limits)
        self._turnstile = Turnstile()

    def preflight(self) -> list[str]:
        """What the sandbox and EvalPlus lack on this machine, one sentence each."""
        return [*sandbox.preflight(), *problems.missing()]

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._boxes.close()

    def load(self, data: Path) -> Sequence[Sample]:
        """One sample a line of the file, in its order, named by `task_id`; InvalidInputError on a broken line."""
        return [Sample(id=record["task_id"], record=record) for record in problems.read_records(data)]

    def start(self, sample: Sample) -> Episode:
        """The question: `prompt`, filled from the record. InvalidInputError where it cannot be filled."""
        texts = {name: value.strip() for name, value in sample.record.items() if isinstance(value, str)}
        try:
            question = _fill(self._settings.prompt, texts)
        except (KeyError, ValueError, IndexError) as fault:
            raise InvalidInputError(
                f"The code task's `prompt` cannot be filled from {sample.id} ({fault}): use {', '.join(texts)}."
            ) from None
        return SingleTurn(sample, [{"role": "user", "content": question}])

    def verdict(self, episode: Episode) -> Verdict:
        """`detail`: whether the base tests, and base and plus tests, passed."""
        code = answer(episode.replies[-1])
        if code is None:
            return Verdict(Outcome.FORMAT, "no ```python block", {"base": False, "plus": False})
        problem = problems.prepare(episode.sample.record)
        judged = self._suite(problem, problem.base, code)
        passed = {"base": judged.outcome is Outcome.PASSED, "plus": False}
        if passed["base"]:
            plus = self._suite(problem, problem.plus, code)
            passed["plus"] = plus.outcome is Outcome.PASSED
            judged = plus if self._settings.judge == "plus" else judged
        return Verdict(judged.outcome, judged.reason, passed)

    def _suite(self, problem: Problem, suite: Suite, code: str) -> Judged:
        """Judge one suite. An answer that the clock ended runs once more with nothing beside it."""
        if not suite.arguments:
            return Judged(Outcome.PASSED, f"{suite.name}: all 0 tests passed")
        with self._turnstile.shared():
            judged = self._try(problem, suite, code)
        if judged.slept:
            with self._turnstile.alone():
                judged = self._try(problem, suite, code)
        return judged

    def _try(self, problem: Problem, suite: Suite, code: str) -> Judged:
        expected = self._references.expected(problem, suite)
        seconds = [max(self._settings.seconds, self._settings.factor * took) for took in expected.seconds]
        total = suite_seconds(seconds)
        limits = replace(self._limits, cpu=total, wall=4 * total + 30)
        return judge(problem, suite, expected, self._boxes.execute(problem, suite, code, seconds, limits))


def answer(reply: str) -> str | None:
    """The code of the first ```python block; a block that the reply's end cuts off counts as far as it goes."""
    found = _ANSWER.search(reply)
    return found[1] if found else None


def _fill(template: str, texts: Mapping[str, str]) -> str:
    """`str.format` with plain names only: a template reaches into no object."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts += [literal, "" if name is None else texts[name]]
    return "".join(parts)
