"""Running answers and references in boxes."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from components.evaluate import sandbox
from components.evaluate.benchmarks.mbpp.judge import Expected
from components.evaluate.benchmarks.mbpp.problem import Problem, Suite
from components.evaluate.benchmarks.mbpp.rules import compares_presence, compares_sets
from components.evaluate.sandbox import Finished, Limits, Setup
from cycleqd.errors import InvalidInputError

METHOD = 1
"""Part of a cached reference's name: raise when the runner's lines change."""

_REFERENCE_SECONDS = 120.0
_SUITE_SECONDS = 60.0  # EvalPlus' bound on a suite, which it measures by the clock


def setup() -> Setup:
    """What a code box shows: Python, numpy where this Python has it (EvalPlus' answers may import it), the runner."""
    here = Path(__file__).parent
    _, binds = sandbox.interpreter()
    binds = {**binds, **{f"/runner/{name}": here / name for name in ("runner.py", "codec.py")}}
    found = importlib.util.find_spec("numpy")
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent
        for path in (folder, folder.with_name("numpy.libs")):
            if path.is_dir():
                binds[f"/packages/{path.name}"] = path
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return Setup(binds=binds, environment={"PYTHONHASHSEED": "0", **threads})  # sets keep one order, run after run


def execute(problem: Problem, suite: Suite, code: str, seconds: Sequence[float], limits: Limits) -> Finished:
    """Run `code` on the suite's arguments, each call within its `seconds` of processor time."""
    task = {
        "code": code,
        "entry_point": problem.entry_point,
        "limits": list(seconds),
        "iterate": compares_sets(problem.entry_point),
    }
    python, _ = sandbox.interpreter()
    program = [python, "-S", "-s", "-P", "-B", "/runner/runner.py"]
    return sandbox.run(
        program, limits=limits, setup=setup(), stdin="\n".join([json.dumps(task), *suite.arguments]).encode()
    )


def suite_seconds(seconds: Sequence[float]) -> float:
    """Processor seconds for a whole suite whose calls may take `seconds` each."""
    return min(_SUITE_SECONDS, sum(seconds)) + 2


class References:
    """The expected values: what the reference solution returns, computed once in a box of its own and kept in `folder`.

    The folder is shown to no box. Its files are JSON and are read back as such.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits

    def expected(self, problem: Problem, suite: Suite) -> Expected:
        """Raises InvalidInputError when the reference itself fails."""
        path = self._folder / f"{problem.digest}-{suite.name}-{METHOD}.json"
        if path.exists():
            kept = json.loads(path.read_bytes())
            return Expected(tuple(kept["lines"]), tuple(kept["seconds"]))
        computed = self._compute(problem, suite)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"lines": computed.lines, "seconds": computed.seconds}))
        partial.replace(path)
        return computed

    def _compute(self, problem: Problem, suite: Suite) -> Expected:
        seconds = [_REFERENCE_SECONDS] * len(suite.arguments)
        finished = execute(problem, suite, problem.reference, seconds, self._limits)
        *lines, last = finished.stdout.decode().splitlines() or ["[]"]
        times = json.loads(last)
        if times[:1] != ["s"] or len(lines) != len(suite.arguments):
            raise InvalidInputError(
                f"The reference solution of {problem.id} fails on {suite.name} test {max(len(lines), 1)} "
                f"({finished.reason or last[:200]}): leave the problem out or raise the task's `memory`."
            )
        if compares_presence(problem.entry_point):
            lines = [json.dumps(["v", json.loads(line)[1] is not None]) for line in lines]
        return Expected(tuple(lines), tuple(times[1]))
