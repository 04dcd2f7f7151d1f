"""From the lines that a box wrote to a judgement of one suite. Runs outside every box and executes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cycleqd.evaluation.benchmarks.code import codec, rules
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite
from cycleqd.evaluation.sandbox import Finished, printable
from cycleqd.evaluation.task import Outcome

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Expected:
    """The reference's results: for each input a line as the runner writes it, seconds and tolerance."""

    lines: tuple[str, ...]
    seconds: tuple[float, ...]
    tolerances: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """The judgement of one suite. `slept`: the clock ended it, not its processor time, so it is tried again alone."""

    outcome: Outcome
    reason: str
    slept: bool = False


def judge(problem: Problem, suite: Suite, expected: Expected, finished: Finished) -> Judged:
    """Compare what an answer's box wrote with the expected lines, in order, up to the first that differs.

    Args:
        problem: The problem that was answered.
        suite: The suite that was run.
        expected: The reference's results on it.
        finished: The answer's run, its output a line a call (`runner.py`).
    """
    lines = finished.stdout.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(expected.lines):
        got = lines[number] if number < len(lines) else ""
        if got == line and "NaN" not in line and '["o"' not in line:
            continue  # the same text is the same value: nothing to decode
        failed = _failure(got, finished)
        if failed is not None:
            if failed.outcome is Outcome.FORMAT:
                return failed
            return replace(failed, reason=f"{suite.name} test {number + 1}: {failed.reason}")
        if not _right(problem, suite.arguments[number], got, line, expected.tolerances[number]):
            return Judged(Outcome.WRONG, f"{suite.name} test {number + 1}: another value than the reference's")
    return Judged(Outcome.PASSED, f"{suite.name}: all {len(expected.lines)} tests passed")


def _failure(line: str, finished: Finished) -> Judged | None:
    """Why there is no value on this line, or None when there is one."""
    try:
        tree = _tree(line)
    except ValueError:
        return _ended(finished)
    match tree:
        case ["t", "extraction"]:
            return Judged(Outcome.TIMEOUT, "processor time limit of extracting the code")
        case ["t", kind]:
            return Judged(Outcome.TIMEOUT, f"{'processor' if kind == 'cpu' else 'clock'} time limit", kind == "wall")
        case ["f", _]:
            return Judged(Outcome.FORMAT, "no Python in the reply")
        case ["r", str(sentence)]:
            return Judged(Outcome.ERROR, f"the code cannot be extracted: {_stable(sentence)}")
        case ["e", str(sentence)]:
            return Judged(Outcome.ERROR, _stable(sentence))
        case ["x", str(sentence)]:
            return Judged(Outcome.ERROR, f"the code does not run: {_stable(sentence)}")
        case ["v" | "h", _]:
            return None
    return Judged(Outcome.ERROR, "the answer wrote over its own results")


def _ended(finished: Finished) -> Judged:
    match finished.reason:
        case "wall":
            return Judged(Outcome.TIMEOUT, "clock time limit of the box", slept=True)
        case "cpu":
            return Judged(Outcome.TIMEOUT, "processor time limit of the box")
        case "memory" | "processes" | "output":
            return Judged(Outcome.ERROR, f"killed: beyond the box's limit on {finished.reason}")
    if finished.returncode in (128 + 24, -24):  # SIGXCPU: the kernel saw the limit before the watcher
        return Judged(Outcome.TIMEOUT, "processor time limit of the box")
    return Judged(Outcome.ERROR, "the process ended before its results")


def _right(problem: Problem, arguments: str, got: str, expected: str, atol: float) -> bool:
    tree, reference = _tree(got), _tree(expected)
    if "h" in (tree[0], reference[0]):
        return bool(tree == reference)
    try:
        value, inputs = codec.decode(tree[1]), codec.decode(json.loads(arguments))
    except ValueError:
        return False
    return rules.agrees(value, codec.decode(reference[1]), inputs, problem.entry_point, atol)


def expectation(problem: Problem, lines: Sequence[str], seconds: Sequence[float]) -> Expected:
    """What a problem's answers are compared with.

    Args:
        problem: The problem.
        lines: What the reference's run wrote, a line a call.
        seconds: Processor time that each call took.
    """
    trees = [_tree(line) for line in lines]
    if rules.compares_presence(problem.entry_point):
        trees = [["v", tree[0] == "h" or tree[1] is not None] for tree in trees]
    values = [codec.decode(tree[1]) if tree[0] == "v" else None for tree in trees]
    tolerances = rules.tolerances(values, problem.atol)
    return Expected(tuple(json.dumps(tree) for tree in trees), tuple(seconds), tuple(tolerances))


def _tree(line: str) -> list[Any]:
    try:
        tree = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str):
        raise ValueError("not a line of the runner")
    return tree


def _stable(sentence: str) -> str:
    """An error's text without memory addresses (they differ from run to run) and without terminal escapes."""
    return printable(_ADDRESS.sub("0x...", sentence))[:200].replace("\n", " ")
