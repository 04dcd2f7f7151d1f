"""EvalPlus 0.3.1 itself, with which extracted code and verdicts are compared."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

from cycleqd.evaluation.benchmarks.code import codec, rules
from cycleqd.evaluation.benchmarks.code import problem as problems


@functools.cache
def sanitizer() -> ModuleType:
    """The module `evalplus.sanitize` with its own search, without the data sets and colours of its command line."""
    unused = {name: ModuleType(name) for name in ("evalplus.data", "termcolor")}
    for module in unused.values():
        setattr(module, "__getattr__", lambda name: None)  # noqa: B010
    with patch.dict(sys.modules, unused):
        return importlib.import_module("evalplus.sanitize")


def sanitize(reply: str, entry_point: str) -> str:
    """The code that EvalPlus keeps of a reply. Takes seconds beyond a hundred lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(sanitizer().sanitize(reply, entry_point))


def verdict(record: Mapping[str, Any], code: str, suite: str) -> bool:
    """What EvalPlus says of code: its reference run, its check."""
    from evalplus.eval import untrusted_check
    from evalplus.gen.util import trusted_exec

    problem = problems.prepare(record)
    inputs = [codec.decode(json.loads(line)) for line in getattr(problem, suite).arguments]
    presence = rules.compares_presence(problem.entry_point)
    expected, took = trusted_exec(
        problem.reference, inputs, problem.entry_point, record_time=True, output_not_none=presence
    )
    inputs = [codec.decode(json.loads(line)) for line in getattr(problem, suite).arguments]
    dataset = "humaneval" if problem.id.startswith("HumanEval/") else "mbpp"
    status, _ = untrusted_check(
        dataset, code, inputs, problem.entry_point, expected, problem.atol, took, fast_check=True
    )
    return bool(status == "pass")
