"""From the lines that a box wrote to a judgement of one suite. Executes and decodes nothing of an answer's making."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cycleqd.evaluation.benchmarks.code import codec, rules
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite
from cycleqd.evaluation.sandbox import Finished, stable
from cycleqd.evaluation.task import Outcome

Compare = Callable[[bytes], Finished]
"""Runs `comparing.py` in its box."""


@dataclass(frozen=True)
class Expected:
    """The reference's results: for each input a line as the runner writes it, seconds and tolerance."""

    lines: tuple[str, ...]
    seconds: tuple[float, ...]
    tolerances: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """The judgement of one suite. `slept`: the clock ended a call, not its processor time: it is tried again alone."""

    outcome: Outcome
    reason: str
    slept: bool = False


def judge(compare: Compare, problem: Problem, suite: Suite, expected: Expected, finished: Finished) -> Judged:
    """Compare what an answer's box wrote with the expected lines, in order, up to the first that differs.

    Args:
        compare: Runs `comparing.py` on its stdin.
        problem: The problem that was answered.
        suite: The suite that was run.
        expected: The reference's results on it.
        finished: The answer's run, its output a line a call (`runner.py`).
    """
    right = "".join(f"{line}\n" for line in expected.lines)
    if not finished.stdout.startswith(right.encode()) or "NaN" in right or '["o"' in right:
        difference = _difference(compare, problem, suite, expected, finished)
        if difference is not None:
            return difference
    return Judged(Outcome.PASSED, f"{suite.name}: all {len(expected.lines)} tests passed")


def _difference(
    compare: Compare, problem: Problem, suite: Suite, expected: Expected, finished: Finished
) -> Judged | None:
    task = {"entry_point": problem.entry_point, "tolerances": expected.tolerances}
    lines = "\n".join([json.dumps(task), *expected.lines, *suite.arguments, ""])
    compared = compare(lines.encode() + finished.stdout)
    if not compared.ok:
        limit = compared.reason or f"exit status {compared.returncode}"
        return Judged(Outcome.ERROR, f"{suite.name}: what it returned could not be compared ({limit})")
    match json.loads(compared.stdout):
        case []:
            return None
        case [number, "wrong"]:
            failed = Judged(Outcome.WRONG, "another value than the reference's")
        case [number, "none"]:
            failed = _ended(finished)
        case [number, kind, sentence]:
            failed = _failure(kind, sentence)
    return (
        failed
        if failed.outcome is Outcome.FORMAT
        else replace(failed, reason=f"{suite.name} test {number + 1}: {failed.reason}")
    )


def _failure(kind: str, sentence: str) -> Judged:
    """Why there is no value, by a line of the runner."""
    match kind, sentence:
        case "t", "extraction":
            return Judged(Outcome.TIMEOUT, "processor time limit of extracting the code")
        case "t", _:
            late = "processor" if sentence == "cpu" else "clock"
            return Judged(Outcome.TIMEOUT, f"{late} time limit", sentence == "wall")
        case "f", _:
            return Judged(Outcome.FORMAT, "no Python in the reply")
        case "r", _:
            return Judged(Outcome.ERROR, f"the code cannot be extracted: {stable(sentence)[:200]}")
        case "e", _:
            return Judged(Outcome.ERROR, stable(sentence)[:200])
        case "x", _:
            return Judged(Outcome.ERROR, f"the code does not run: {stable(sentence)[:200]}")
    return Judged(Outcome.ERROR, "the answer wrote over its own results")


def _ended(finished: Finished) -> Judged:
    match finished.reason:
        case "wall":
            return Judged(Outcome.TIMEOUT, "clock time limit of the box")
        case "cpu":
            return Judged(Outcome.TIMEOUT, "processor time limit of the box")
        case "memory" | "processes" | "output" | "files":
            return Judged(Outcome.ERROR, f"killed: beyond the box's limit on {finished.reason}")
    if finished.returncode in (128 + 24, -24):  # SIGXCPU: the kernel saw the limit before the watcher
        return Judged(Outcome.TIMEOUT, "processor time limit of the box")
    return Judged(Outcome.ERROR, "the process ended before its results")


def expectation(problem: Problem, lines: Sequence[str], seconds: Sequence[float]) -> Expected:
    """What a problem's answers are compared with.

    Args:
        problem: The problem.
        lines: What the reference's run wrote, a line a call.
        seconds: Processor time that each call took.
    """
    trees = [json.loads(line) for line in lines]
    if rules.compares_presence(problem.entry_point):
        trees = [["v", tree[0] == "h" or tree[1] is not None] for tree in trees]
    values = [codec.decode(tree[1]) if tree[0] == "v" else None for tree in trees]
    tolerances = rules.tolerances(values, problem.atol)
    return Expected(tuple(json.dumps(tree) for tree in trees), tuple(seconds), tuple(tolerances))
