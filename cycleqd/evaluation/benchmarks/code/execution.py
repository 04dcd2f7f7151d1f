"""Running answers and references in boxes."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.benchmarks.code.judge import Expected, expectation
from cycleqd.evaluation.benchmarks.code.problem import Problem, Suite, package_folder
from cycleqd.evaluation.benchmarks.code.rules import compares_sets
from cycleqd.evaluation.sandbox import Finished, Limits, Setup, WarmPool

METHOD = 2
"""Part of a cached reference's name: raise when the runner's lines change."""

_REFERENCE_SECONDS = 120.0
_SUITE_SECONDS = 60.0  # EvalPlus' bound on a suite, which it measures by the clock
_WRITING_SECONDS = 10.0  # for the values of a suite, where they are large
_COMPARING_SECONDS = 60.0  # EvalPlus compares within its bound on a suite
_ENVIRONMENT = {  # sets keep one order, run after run
    "PYTHONHASHSEED": "0",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
_EXTRACTION_SECONDS = 3.0  # a reply of 2000 lines takes a twentieth of a second


def comparing_setup() -> Setup:
    """What a box for comparing shows besides Python: `comparing.py`, and what it uses of this package and others."""
    here, package = Path(__file__).parent, "/packages/cycleqd/evaluation/benchmarks/code"
    binds = {f"{package}/{name}": here / name for name in ("comparing.py", "codec.py", "rules.py")}
    binds["/packages/evalplus/eval/_special_oracle.py"] = package_folder("evalplus") / "eval" / "_special_oracle.py"
    return Setup(binds={**binds, **_numpy()}, environment=_ENVIRONMENT)


def setup() -> Setup:
    """What a code box shows besides Python.

    The runner, what extracts code from replies (of EvalPlus that file alone, as a box holds nothing that compares), and
    numpy where we have it: EvalPlus lets answers import it.
    """
    here = Path(__file__).parent
    binds = {f"/runner/{name}": here / name for name in ("runner.py", "codec.py", "sanitizer.py")}
    binds["/packages/evalplus/sanitize.py"] = package_folder("evalplus") / "sanitize.py"
    for name in ("tree_sitter", "tree_sitter_python"):
        binds[f"/packages/{name}"] = package_folder(name)
    return Setup(binds={**binds, **_numpy()}, environment=_ENVIRONMENT)


def _numpy() -> dict[str, Path]:
    if importlib.util.find_spec("numpy") is None:
        return {}
    folder = package_folder("numpy")
    return {f"/packages/{path.name}": path for path in (folder, folder.with_name("numpy.libs")) if path.is_dir()}


class Boxes:
    """Warm boxes that run answers, and others that compare what came of them, for `size` threads."""

    def __init__(self, size: int) -> None:
        self._pool = WarmPool("/runner/runner.py", setup(), size)
        script = "/packages/cycleqd/evaluation/benchmarks/code/comparing.py"
        self._comparing = WarmPool(script, comparing_setup(), size)

    def execute(
        self, problem: Problem, suite: Suite, answer: Mapping[str, str], seconds: Sequence[float], limits: Limits
    ) -> Finished:
        """Run an answer on a suite's arguments.

        Args:
            problem: The problem that it answers.
            suite: The suite, of base or plus tests.
            answer: {"reply": text}, from which the code is extracted first, or {"code": text}.
            seconds: Processor time that each call may take.
            limits: What the whole run may use.
        """
        task = {
            **answer,
            "extraction": _EXTRACTION_SECONDS,
            "entry_point": problem.entry_point,
            "limits": list(seconds),
            "iterate": compares_sets(problem.entry_point),
        }
        return self._pool.run("\n".join([json.dumps(task), *suite.arguments]).encode(), limits)

    def compare(self, written: bytes, limits: Limits) -> Finished:
        """Run `comparing.py`.

        Args:
            written: Its stdin.
            limits: What an answer's run may use; comparing may use as much, and a minute of processor time.
        """
        return self._comparing.run(written, replace(limits, cpu=_COMPARING_SECONDS, wall=4 * _COMPARING_SECONDS))

    def close(self) -> None:
        """End the boxes."""
        self._pool.close()
        self._comparing.close()


def kept(finished: Finished) -> tuple[Finished, str | None]:
    """The output without its first line where that holds the code that was kept of a reply, and the code.

    Args:
        finished: A run of `Boxes.execute`.
    """
    line, _, rest = finished.stdout.partition(b"\n")
    if not line.startswith(b'["c", "'):
        return finished, None
    try:
        return replace(finished, stdout=rest), str(json.loads(line)[1])
    except ValueError:  # cut by the limit on output
        return finished, None


def suite_seconds(seconds: Sequence[float]) -> float:
    """Processor seconds for a whole suite, for extracting the code before and writing down its values.

    Args:
        seconds: Processor time that each call may take.
    """
    return _EXTRACTION_SECONDS + min(_SUITE_SECONDS, sum(seconds)) + _WRITING_SECONDS + 2


class References:
    """The expected values: what the reference solution returns, computed once in a box of its own and kept in `folder`.

    The folder is shown to no box. Its files are JSON and are read back as such.
    """

    def __init__(self, folder: Path, boxes: Boxes, limits: Limits) -> None:
        self._folder = folder
        self._boxes = boxes
        self._limits = limits

    def expected(self, problem: Problem, suite: Suite) -> Expected:
        """The results of a problem's reference on a suite.

        Args:
            problem: The problem.
            suite: Its base or plus tests.

        Raises:
            InvalidInputError: The reference itself fails.
        """
        path = self._folder / f"{problem.digest}-{suite.name}-{METHOD}.json"
        if path.exists():
            kept = json.loads(path.read_bytes())
            return Expected(tuple(kept["lines"]), tuple(kept["seconds"]), tuple(kept["tolerances"]))
        computed = self._compute(problem, suite)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
        partial.write_text(json.dumps(asdict(computed)))
        partial.replace(path)
        return computed

    def _compute(self, problem: Problem, suite: Suite) -> Expected:
        seconds = [_REFERENCE_SECONDS] * len(suite.arguments)
        finished = self._boxes.execute(problem, suite, {"code": problem.reference}, seconds, self._limits)
        *lines, last = finished.stdout.decode("utf-8", "replace").splitlines() or [""]
        if not finished.ok or not last.startswith('["s"') or len(lines) != len(suite.arguments):
            raise InvalidInputError(
                f"The reference solution of {problem.id} fails on {suite.name} test {max(len(lines), 1)} "
                f"({finished.reason or last[:200]}): leave the problem out or raise the task's `memory`."
            )
        return expectation(problem, lines, json.loads(last)[1])
