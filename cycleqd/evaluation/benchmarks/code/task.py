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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from cycleqd.evaluation import sandbox
from cycleqd.evaluation.benchmarks.code import problem as problems
from cycleqd.evaluation.benchmarks.code.execution import Boxes, References, kept, suite_seconds
from cycleqd.evaluation.benchmarks.code.judge import Judged, judge
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite
from cycleqd.evaluation.benchmarks.inputs import BenchmarkSettings, filled
from cycleqd.evaluation.reasoning import THINK, read_marks, without_reasoning
from cycleqd.evaluation.sandbox import MIB, Limits, Turnstile
from cycleqd.evaluation.task import Episode, Outcome, Sample, SingleTurn, Task, Verdict, Workspace

_PROMPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{prompt}\n```"
)
_OUTPUT = 72 * MIB  # of which the runner writes 64
_CLOCK_SLACK = 3.0
"""Seconds by the clock beside a suite's processor time: EvalPlus, which measures by the clock, leaves two."""


class CodeSettings(BenchmarkSettings):
    """Settings of the code task, all optional."""

    task: ClassVar[str] = "code"

    prompt: str = _PROMPT
    """The user message, with {field} for the record's texts, stripped; {instruction} and {examples} are what its prompt
    says before its first assertion, and from there on."""
    judge: Literal["base", "plus"] = "plus"
    """Which tests must pass: the base tests, or base and plus tests."""
    seconds: float = Field(1.0, gt=0)
    """A call may take so much processor time, or"""
    factor: float = Field(4.0, gt=0)
    """so many times the reference's, whichever is longer."""
    memory: int = Field(4096, gt=0)
    """MiB for one answer."""
    max_rounds: Literal[1] = 1
    """A question and an answer."""
    reasoning: tuple[str, ...] = THINK
    """What opens and what closes the block that is taken off a reply, or nothing: see `reasoning.py`."""

    _marks = field_validator("reasoning", mode="before")(read_marks)


class CodeTask(Task):
    """MBPP+ and any file in its format. Score: pass@1 of one answer a problem."""

    method_version = 3

    def __init__(self, settings: Mapping[str, Any], workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._options = CodeSettings.read(settings)
        self._limits = Limits(
            memory=self._options.memory * MIB,
            address_space=max(4096, 2 * self._options.memory) * MIB,
            processes=64,  # and threads
            output=_OUTPUT,
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

    @classmethod
    def memory(cls, settings: Mapping[str, Any], workers: int) -> int:
        """An answer's memory and scratch folders, and its results on their way to the box that compares them."""
        return workers * (CodeSettings.read(settings).memory * MIB + 2 * Limits().scratch + 4 * _OUTPUT)

    def __exit__(self, *_: object) -> None:
        self._boxes.close()

    def load(self, data: Path) -> Sequence[Sample]:
        """One sample a line of the file, in its order, named by `task_id`."""
        return [Sample(id=record["task_id"], record=record) for record in problems.read_records(data)]

    def start(self, sample: Sample) -> Episode:
        """The question: `prompt`, filled from the record."""
        texts = {name: value.strip() for name, value in sample.record.items() if isinstance(value, str)}
        texts["instruction"], texts["examples"] = problems.parts(texts["prompt"])
        question = filled(self._options.prompt, texts, sample.id)
        return SingleTurn(sample, [{"role": "user", "content": question}])

    def verdict(self, episode: Episode) -> Verdict:
        """`detail`: whether the base tests, and base and plus tests, passed."""
        reply = without_reasoning(episode.replies[-1], self._options.reasoning)
        problem = problems.prepare(episode.sample.record)
        judged, code = self._suite(problem, problem.base, {"reply": reply})
        passed = {"base": judged.outcome is Outcome.PASSED, "plus": False}
        if passed["base"]:
            plus, _ = self._suite(problem, problem.plus, {"reply": reply} if code is None else {"code": code})
            passed["plus"] = plus.outcome is Outcome.PASSED
            judged = plus if self._options.judge == "plus" else judged
        return Verdict(judged.outcome, judged.reason, passed)

    def _suite(self, problem: Problem, suite: Suite, answer: Mapping[str, str]) -> tuple[Judged, str | None]:
        """Judge one suite; also the code that was kept of a reply. What the clock ended runs once more, alone."""
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
        seconds = [max(self._options.seconds, self._options.factor * took) for took in expected.seconds]
        total = suite_seconds(seconds)
        limits = replace(self._limits, cpu=total, wall=total + _CLOCK_SLACK)
        finished, code = kept(self._boxes.execute(problem, suite, answer, seconds, limits))
        return judge(lambda data: self._boxes.compare(data, limits), problem, suite, expected, finished), code
