"""Compares what an answer's box wrote with the reference's lines. Runs in boxes of its own, where no answer ever ran.

To decode a value takes the memory and time that whoever wrote it chose; here both are limited, and whatever goes wrong
is this answer's own. stdin: a line {"entry_point", "tolerances": [number, ...]}, one line for each expected value, one
for the arguments of each call, then all that the answer's box wrote (`runner.py`). stdout: one JSON line:

    []                          every value is right
    [number, "wrong"]           the value of this call (from 0) is not
    [number, kind, sentence]    a line of the runner that holds no value, as it is
    [number, "none"]            no line that the runner writes
"""

from __future__ import annotations

import json
import sys
from typing import Any

sys.path.insert(0, "/packages")  # in the box
import numpy as np  # noqa: F401 -- loaded before boxes fork

from cycleqd.evaluation.benchmarks.code import codec, rules

_SENTENCE = 500
_WORTHLESS = (b"NaN", b'["o"')  # a value with one of them equals not even itself


def main() -> None:
    """Compare what stdin holds, write the first difference to stdout."""
    head, _, rest = sys.stdin.buffer.read().partition(b"\n")
    task = json.loads(head)
    count = len(task["tolerances"])
    *lines, written = rest.split(b"\n", 2 * count)
    print(json.dumps(difference(task, lines[:count], lines[count:], written)), flush=True)


def difference(task: dict[str, Any], expected: list[bytes], arguments: list[bytes], written: bytes) -> list[Any]:
    """The first difference, as on stdout.

    Args:
        task: The first line of stdin.
        expected: What the runner wrote for the reference, a line a call.
        arguments: The encoded arguments, a line a call.
        written: What the answer's box wrote.
    """
    lines = written.split(b"\n", len(expected))
    for number, wanted in enumerate(expected):
        got = lines[number] if number < len(lines) else b""
        if got == wanted and not any(word in got for word in _WORTHLESS):
            continue
        try:
            tree = json.loads(got)
            kind, value = tree
        except (ValueError, TypeError, RecursionError):
            return [number, "none"]
        if kind not in ("v", "h"):
            known = isinstance(kind, str) and isinstance(value, str)
            return [number, kind[:10], value[:_SENTENCE]] if known else [number, "none"]
        if not _right(task, json.loads(arguments[number]), tree, json.loads(wanted), task["tolerances"][number]):
            return [number, "wrong"]
    return []


def _right(task: dict[str, Any], arguments: Any, got: Any, wanted: Any, atol: float) -> bool:
    """Whether a value is right. Whatever fails on the way was no right value, as in EvalPlus."""
    try:
        if "h" in (got[0], wanted[0]):
            mine, right = (tree[1] if tree[0] == "h" else codec.digest(codec.decode(tree[1])) for tree in (got, wanted))
            return bool(mine) and mine == right
        value, expected = codec.decode(got[1]), codec.decode(wanted[1])
        return rules.agrees(value, expected, codec.decode(arguments), task["entry_point"], atol)
    except Exception:
        return False
