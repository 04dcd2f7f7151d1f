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

The answer is the code that EvalPlus' `sanitize` keeps of the reply, fenced or not; a block of reasoning before it is
taken off first. It runs on the arguments of the base tests, and when these pass on those of the plus tests, in a box
that holds no expected value; what it returned comes back as data and is compared out here.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation import sandbox
from cycleqd.evaluation.benchmarks.code import problem as problems
from cycleqd.evaluation.benchmarks.code.execution import Boxes, References, kept, suite_seconds
from cycleqd.evaluation.benchmarks.code.judge import Judged, judge
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite
from cycleqd.evaluation.reasoning import THINK, read_marks, without_reasoning
from cycleqd.evaluation.sandbox import MIB, Limits, Turnstile
from cycleqd.evaluation.task import Episode, Outcome, Sample, SingleTurn, Task, Verdict, Workspace

_PROMPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{prompt}\n```"
)
_KINDS = {str: "use a text", int: "use a whole number above 0", float: "use a number above 0"}


@dataclass(frozen=True)
class Settings:
    """`prompt`: the user message, with {field} for the record's texts (stripped). `judge`: which tests must pass for a
    pass, "base" or "plus" (base and plus). `seconds` and `factor`: a call may take the larger of `seconds` and `factor`
    times the reference's processor time. `memory`: MiB for one answer. `max_rounds`: 1, a question and an answer.
    `reasoning`: what opens and what closes the block that is taken off a reply, or nothing: see `reasoning.py`."""

    prompt: str = _PROMPT
    judge: str = "plus"
    seconds: float = 1.0
    factor: float = 4.0
    memory: int = 4096
    max_rounds: int = 1
    reasoning: tuple[str, ...] = THINK

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """The settings of a configuration, checked. InvalidInputError on an unknown name or a value out of range."""
        unknown = sorted(set(values) - {known.name for known in fields(cls)})
        if unknown:
            raise InvalidInputError(
                f"A code task has no setting {', '.join(unknown)}: remove it from the task's settings."
            )
        values = {**values, "reasoning": read_marks(values.get("reasoning", THINK))}
        for name, default in vars(cls()).items():
            value, kind = values.get(name, default), type(default)
            if not isinstance(value, (int, float) if kind is float else kind) or (kind in (int, float) and value <= 0):
                raise InvalidInputError(f"The code task's `{name}` is {value!r}: {_KINDS[kind]}.")
        settings = cls(**values)
        if settings.judge not in ("base", "plus"):
            raise InvalidInputError(f'The code task\'s `judge` is {settings.judge!r}: use "base" or "plus".')
        if settings.max_rounds != 1:
            raise InvalidInputError(f"The code task's `max_rounds` is {settings.max_rounds}: it has one round, use 1.")
        return settings


class CodeTask(Task):
    """MBPP+ and any file in its format. Score: pass@1 of one answer a problem."""

    method_version = 2

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
        reply = without_reasoning(episode.replies[-1], self._settings.reasoning)
        problem = problems.prepare(episode.sample.record)
        judged, code = self._suite(problem, problem.base, {"reply": reply})
        passed = {"base": judged.outcome is Outcome.PASSED, "plus": False}
        if passed["base"]:
            plus, _ = self._suite(problem, problem.plus, {"reply": reply} if code is None else {"code": code})
            passed["plus"] = plus.outcome is Outcome.PASSED
            judged = plus if self._settings.judge == "plus" else judged
        return Verdict(judged.outcome, judged.reason, passed)

    def _suite(self, problem: Problem, suite: Suite, answer: Mapping[str, str]) -> tuple[Judged, str | None]:
        """Judge one suite; also the code that was kept of a reply. An answer that the clock ended runs once more with
        nothing beside it."""
        if not suite.arguments:
            return Judged(Outcome.PASSED, f"{suite.name}: all 0 tests passed"), None
        with self._turnstile.shared():
            judged, code = self._try(problem, suite, answer)
        if judged.slept:
            with self._turnstile.alone():
                judged, code = self._try(problem, suite, answer)
        return judged, code

    def _try(self, problem: Problem, suite: Suite, answer: Mapping[str, str]) -> tuple[Judged, str | None]:
        expected = self._references.expected(problem, suite)
        seconds = [max(self._settings.seconds, self._settings.factor * took) for took in expected.seconds]
        total = suite_seconds(seconds)
        limits = replace(self._limits, cpu=total, wall=4 * total + 30)
        finished, code = kept(self._boxes.execute(problem, suite, answer, seconds, limits))
        return judge(problem, suite, expected, finished), code


def _fill(template: str, texts: Mapping[str, str]) -> str:
    """`str.format` with plain names only: a template reaches into no object."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts += [literal, "" if name is None else texts[name]]
    return "".join(parts)
