"""When a returned value counts as the expected one: EvalPlus' rules (evalplus 0.3.1, `eval.unsafe_execute`, MBPP).

EvalPlus compares inside the process that runs the answer; here the values have left it, and `comparing.py` uses this
file in a box of its own. Its lists of special problems and its oracles are imported from it; tests compare these rules
with its own verdicts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from cycleqd.evaluation.benchmarks.code import codec

_FLOAT_ATOL = 1e-6
_RTOL = 1e-7
_ELEMENTS = 1_000_001  # taken of a value of which only the set counts; `codec.encode` writes fewer out


def compares_sets(entry_point: str) -> bool:
    """Whether only the set of the returned elements counts.

    Args:
        entry_point: Name of the function that is asked for, by which EvalPlus lists special problems.
    """
    from evalplus.eval._special_oracle import MBPP_OUTPUT_SET_EQ_TASKS

    return entry_point in MBPP_OUTPUT_SET_EQ_TASKS


def compares_presence(entry_point: str) -> bool:
    """Whether only being None or not counts (the expected value is then a bool).

    Args:
        entry_point: Name of the function that is asked for.
    """
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS

    return entry_point in MBPP_OUTPUT_NOT_NONE_TASKS


def tolerances(expected: Sequence[Any], atol: float) -> list[float]:
    """The absolute tolerance for each input.

    Args:
        expected: The reference's value for each input.
        atol: The problem's tolerance; from the first float on, 0 becomes 1e-6 for all that follow.
    """
    found = []
    for value in expected:
        if atol == 0 and _is_floats(value):
            atol = _FLOAT_ATOL
        found.append(atol)
    return found


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(element, float) for element in value)
    return isinstance(value, float)


def agrees(value: Any, expected: Any, arguments: Sequence[Any], entry_point: str, atol: float) -> bool:
    """Whether a returned value counts as right. What cannot be compared does not.

    Args:
        value: What the answer returned; decoded, so of plain types.
        expected: What the reference returned.
        arguments: What both were called with.
        entry_point: Name of the function.
        atol: Absolute tolerance; 0 compares exactly.
    """
    try:
        if entry_point == "find_zero":  # HumanEval/32: any root is right
            from evalplus.eval._special_oracle import _poly

            return bool(abs(_poly(*arguments, value)) <= atol)
        exact = _exact(value, expected, arguments, entry_point, atol)
        if exact or atol == 0:
            return bool(exact)
        return type(value) is type(expected) and _close(value, expected, atol)
    except Exception:
        return False


def _exact(value: Any, expected: Any, arguments: Sequence[Any], entry_point: str, atol: float) -> bool:
    from evalplus.eval._special_oracle import _digit_distance_nums, _surface_Area

    if compares_sets(entry_point):
        return bool(_as_set(value) == set(expected))
    if compares_presence(entry_point):
        return bool(value == expected if isinstance(value, bool) else expected == (value is not None))
    if value == expected or entry_point == "are_equivalent":
        return True
    if entry_point == "sum_div":
        return bool(value == 0)
    if entry_point == "surface_Area":
        return bool(abs(value - _surface_Area(*arguments)) <= atol)
    if entry_point == "digit_distance_nums":
        return bool(value == _digit_distance_nums(*arguments))
    return False


def _as_set(value: Any) -> Any:
    return codec.hashed(set, list(itertools.islice(value, _ELEMENTS)))


def _close(value: Any, expected: Any, atol: float) -> bool:
    import numpy as np

    if isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=0, abs_tol=atol + _RTOL * abs(expected))
    if isinstance(expected, (list, tuple)) and len(value) != len(expected):
        return False
    return bool(np.allclose(value, expected, rtol=_RTOL, atol=atol))
