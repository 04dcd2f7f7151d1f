"""Which code of a reply is judged: what EvalPlus' `sanitize` keeps, whatever form the reply has."""

from __future__ import annotations

import ast
import functools
import gzip
import json
import os
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cycleqd.evaluation.benchmarks.code import execution, sanitizer
from cycleqd.evaluation.benchmarks.code.task import CodeTask
from cycleqd.evaluation.reasoning import THINK, without_reasoning
from cycleqd.evaluation.task import Outcome, Sample, Verdict, Workspace
from tests import evalplus

SMALL = Path(__file__).parents[2] / "data" / "code_small.jsonl"
MBPP = Path(os.environ.get("CYCLEQD_BENCHMARKS", "-"), "mbppplus", "MbppPlus-v0.2.0.jsonl.gz")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeTask]:
    task = CodeTask({"judge": "base"}, Workspace(tmp_path_factory.mktemp("code"), 2))
    if missing := task.preflight():
        pytest.skip(" ".join(missing))
    with task:
        yield task


@pytest.fixture(scope="module")
def total(task: CodeTask) -> Sample:
    return task.load(SMALL)[0]


def judged(task: CodeTask, sample: Sample, reply: str) -> Verdict:
    episode = task.start(sample)
    episode.next(reply)
    return task.verdict(episode)


# Forms

RIGHT = "def total(xs):\n    return sum(xs)"
WRONG = "def total(xs):\n    return None"
PASSING = {
    "a block": f"```python\n{RIGHT}\n```",
    "prose around it": f"Sure, here's the code:\n\n```python\n{RIGHT}\n```\n\nIt's short (and fast).",
    "another name": f"```py\n{RIGHT}\n```",
    "a bare fence": f"```\n{RIGHT}\n```",
    "tildes": f"~~~python\n{RIGHT}\n~~~",
    "no fence": RIGHT,
    "no fence, one line": "def total(xs): return sum(xs)",
    "never closed": f"Here:\n```python\n{RIGHT}",
    "cut in a word": f"```python\n{RIGHT}\n```\nThis function ret",
    "cut in a second function": f"```python\n{RIGHT}\n\n\ndef test_total():\n    assert total([1,",
    "Windows": f"```python\r\n{RIGHT}\r\n```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
    "tabs": "```python\ndef total(xs):\n\treturn sum(xs)\n```",
    "usage in the block": f"```python\n{RIGHT}\n\nprint(total([1]))\nassert total([]) == 1\nraise SystemExit\n```",
    "a main": f"```python\n{RIGHT}\n\nif __name__ == '__main__':\n    total(input())\n```",
    "usage in its own block": f"```python\n{RIGHT}\n```\nUse it:\n```python\ntotal([1])\n```",
    "helpers": f"```python\nimport math\nfrom os import path\ndef add(a, b):\n    return a + b\n\n"
    f"def total(xs):\n    s = 0\n    for x in xs:\n        s = add(s, x)\n    return s\n\n{WRONG}\n```",
    "a fence in the docstring": '```python\ndef total(xs):\n    """Add.\n\n    ```\n    total([1])\n    ```\n    """\n'
    "    return sum(xs)\n```",
    "a draft": f"<think>\nIs it\n```python\n{WRONG}\n    # or else?\n    # no.\n```\n</think>\n\n```\n{RIGHT}\n```",
    "a list around it": f"1. Write it:\n\n```python\n{RIGHT}\n```\n\n2. Test it:\n- with []\n- with [1]",
    "annotated": "```python\nimport typing\nn: typing.Any = 0\ndef total(xs: list) -> int:\n    return sum(xs, n)\n```",
}
FAILING = {
    "one line in a fence": ("```python\ndef total(xs): return sum(xs)\n```", Outcome.FORMAT),
    "indented as a list item": (
        "1. It is\n   ```python\n   " + RIGHT.replace("\n", "\n   ") + "\n   ```",
        Outcome.FORMAT,
    ),
    "decorated": (f"```python\nimport functools\n@functools.cache\n{RIGHT}\n```", Outcome.ERROR),
    "a longer run of other code": (f"```python\n{RIGHT}\n```\nor\n```python\n{WRONG}\n# no\n```", Outcome.WRONG),
    "nothing": ("", Outcome.FORMAT),
    "prose": ("I am sorry, but I can't do that.", Outcome.FORMAT),
    "only a draft": (f"<think>\n```python\n{RIGHT}\n```\n</think>\nI don't know.", Outcome.FORMAT),
    "another name": ("```python\ndef add(xs):\n    return sum(xs)\n```", Outcome.ERROR),
}


@pytest.mark.parametrize("form", PASSING)
def test_right_code_passes_in_every_form(task: CodeTask, total: Sample, form: str) -> None:
    passed = Verdict(Outcome.PASSED, "base: all 2 tests passed", {"base": True, "plus": True})
    assert judged(task, total, PASSING[form]) == passed


@pytest.mark.parametrize("form", FAILING)
def test_what_evalplus_does_not_keep_fails(task: CodeTask, total: Sample, form: str) -> None:
    reply, outcome = FAILING[form]
    kept = evalplus.sanitize(without_reasoning(reply, THINK), "total")
    assert not evalplus.verdict(total.record, kept, "base")
    assert judged(task, total, reply).outcome is outcome


def test_the_block_of_reasoning_is_a_setting(task: CodeTask, total: Sample, tmp_path: Path) -> None:
    reply = f"[THINK]\n{WRONG}\n# is it?\n[/THINK]\n{RIGHT}"
    assert judged(task, total, reply).outcome is Outcome.WRONG
    with CodeTask({"judge": "base", "reasoning": ["[THINK]", "[/THINK]"]}, Workspace(tmp_path)) as other:
        assert judged(other, total, reply).passed


@pytest.mark.parametrize(
    ("reply", "marks", "rest"),
    [
        ("<think>a</think>b", THINK, "b"),
        (" \n<think>\n</think>\n    b", THINK, "\n    b"),
        ("<think>a</think>b</think>", THINK, "b</think>"),
        ("b <think>a</think>", THINK, "b <think>a</think>"),
        ("<think>cut", THINK, "<think>cut"),
        ("a</think>b", THINK, "a</think>b"),
        ("a</think>b", ("", "</think>"), "b"),
        ("<think>a</think>b", (), "<think>a</think>b"),
        ("", THINK, ""),
    ],
)
def test_reasoning_is_taken_off_the_beginning(reply: str, marks: tuple[str, ...], rest: str) -> None:
    assert without_reasoning(reply, marks) == rest


# Hostile replies: each has an outcome and a reason, and the next sample is judged

HOSTILE = {
    "nested expressions": ("1+" * 50000 + "1\nx", "RecursionError"),
    "a deep tree": ("x = " + "-" * 2000 + "1\ndef total(xs):\n    return x", "RecursionError"),
    "brackets in a line": ("(" * 1_000_000, "no Python in the reply"),
    "a null character": ("def total(xs):\n    return 6\n\0", "another value"),
    "null characters": ("\0\n" * 10000, "no Python in the reply"),
    "half a surrogate pair": ("\ud800\ndef total(xs):\n    return 6", "UnicodeEncodeError"),
    "megabytes in a line": ("x y " * 500_000, "no Python in the reply"),
    "megabytes of lines": ("Here it is.\n" * 100_000, "no Python in the reply"),
    "lines within lines": ("def total(xs):\r    x = 1\x0c\x85\n    return\u2028 6", "no Python in the reply"),
}


@pytest.mark.parametrize("form", HOSTILE)
def test_a_hostile_reply_has_an_outcome(task: CodeTask, total: Sample, form: str) -> None:
    reply, reason = HOSTILE[form]
    verdict = judged(task, total, reply)
    assert not verdict.passed
    assert reason in verdict.reason
    assert judged(task, total, PASSING["a block"]).passed


def test_extracting_has_a_limit(task: CodeTask, total: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_EXTRACTION_SECONDS", 0.2)
    verdict = judged(task, total, "[\n" * 5000)
    assert (verdict.outcome, verdict.reason) == (
        Outcome.TIMEOUT,
        "base test 1: processor time limit of extracting the code",
    )
    assert judged(task, total, PASSING["a block"]).passed


def test_long_replies_take_a_part_of_the_limit() -> None:
    """Two thousand lines: EvalPlus' own search would parse two million pairs, this one less than two a line."""
    prose = "It's simple: first, we look at the list.\n\nThen (as usual) we add.\n# And so on\n"
    parsed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sanitizer, "_parse", lambda code, parse=sanitizer._parse: parsed.append(code) or parse(code))
        assert sanitizer.extract(f"{prose * 400}```python\n{RIGHT}\n```\n{prose * 100}", "total") == RIGHT
    assert len(parsed) < 2 * 2000


# The same code as EvalPlus: on lines thrown together, and on dressed solutions

LINES = [
    *(
        "",
        " ",
        "\x0c",
        "\u3000",
        "\x1c",
        "\r",
        "\\",
        "x = 1",
        "x; y = 2",
        "x = 1; \\",
        "x = 'a\\",
        "b'",
        "x = 1 \\",
        "z\rw",
    ),
    *("def f(x):", "async def f(x):", "class f:", "    return x", "        return g", "\treturn f", "    pass", "   z"),
    *("def g(a, *, b):", "  yield 1", "@dec", "@dec(", "if x:", "else:", "elif x: pass", "try:", "except:", "finally:"),
    *("match x:", "    case 1:", "with x as y:", "    x = '''", '"""', "'''", '    """', "f'''{a", "}'''", 'f"{a +}"'),
    *(
        "(",
        ")",
        "[",
        "]",
        "{'a': 1,",
        "}",
        "x = f(",
        "a)",
        "1,",
        "f(a b)",
        "f(a=1, 2)",
        "f() = 1",
        "None = 1",
        "x := 1",
    ),
    *(
        "f = g",
        "x: int = f",
        "f.a = g",
        "x[0] = f",
        "f += 1",
        "f, g = x",
        "*a, = b",
        "import f",
        "from x import (",
        "return",
    ),
    *(
        "```",
        "```python",
        "~~~",
        "Here it is:",
        "it's",
        "# c",
        "- a point",
        "1. item",
        "print 1",
        "5or 6",
        "0777",
        "\ufeffx",
    ),
    *("x\0", "é = f", "€", "'\\d'", "lambda:", "type X = int", "# -*- coding: latin-1 -*-", "    break", "global f"),
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=9).map("\n".join))
def test_the_longest_run_is_evalplus_own(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sanitizer.longest_run(text) == evalplus.sanitizer().code_extract(text)
    assert _outcome(sanitizer.extract, text) == _outcome(evalplus.sanitize, text)


def _outcome(extract: Any, text: str) -> Any:
    try:
        return extract(text, "f")
    except Exception as problem:
        return type(problem)


@functools.cache
def records() -> list[dict[str, Any]]:
    if not MBPP.is_file():
        pytest.skip("CYCLEQD_BENCHMARKS names no folder with mbppplus")
    with gzip.open(MBPP, "rt") as file:
        return [json.loads(line) for line in file]


PROSE = [
    "",
    "Here is the solution:",
    "Sure!\n\nIt's a loop (as usual):\n- first\n- second",
    "# Answer\n\nUse `f`.",
    "x",
]
HELPERS = [
    *("", "import math", "from typing import *\nLIMIT = 10"),
    "def helper(x):\n    return x\n",
    "class Box:\n    size = 1",
    "def {name}(*a):\n    return None",
    "import functools\n@functools.cache",
]
USAGE = [
    *("", "print({name}(1))", "assert {name}"),
    "if __name__ == '__main__':\n    {name}()",
    "result = {name}",
    "def {name}(x):\n    return 1",
]
THOUGHTS = ["", "<think>\nHm.\n</think>\n\n", "<think>\n```python\ndef {name}(*a):\n    return 1\n```\nNo.</think>"]

OTHER = "\n\nOr, with a table:\n```\n" + "\n".join(f"table[{i}] = {i}" for i in range(12)) + "\n```"


@st.composite
def dressed(draw: st.DrawFn) -> tuple[int, str, str]:
    """The number of a problem, and a reply that holds its solution, as thoughts and the rest."""
    number = draw(st.sampled_from(range(378)))
    record = records()[number]
    name, code = record["entry_point"], record["canonical_solution"].strip("\n")
    if draw(st.booleans()):
        code = documented(code)
    if draw(st.booleans()) and all(len(indent) % 4 == 0 for indent in re.findall(r"(?m)^ *", code)):
        code = re.sub(r"(?m)^(    )+", lambda found: "\t" * (len(found[0]) // 4), code)
    parts = [
        draw(st.sampled_from(HELPERS)).replace("{name}", name),
        code,
        draw(st.sampled_from(USAGE)).replace("{name}", name),
    ]
    body = draw(st.sampled_from(["\n", "\n\n"])).join(part for part in parts if part)
    fence = draw(st.sampled_from(["```", "~~~", "````", ""]))
    word = draw(st.sampled_from(["python", "py", "Python", ""]))
    if fence:
        body = f"{fence}{word}\n{body}" + draw(st.sampled_from([f"\n{fence}", f"\n{fence}", ""]))
    if draw(st.integers(0, 9)) == 0:
        body = textwrap.indent(body, "   ")
    second = draw(st.sampled_from(["", "", f"\n\nFor example:\n```python\n{name}(1)\n{name}(2)\n```", OTHER]))
    rest = "\n".join([draw(st.sampled_from(PROSE)), body + second, draw(st.sampled_from(PROSE))])
    thoughts = draw(st.sampled_from(THOUGHTS)).replace("{name}", name)
    ends = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    return number, thoughts.replace("\n", ends), rest.replace("\n", ends)


def documented(code: str) -> str:
    """With a docstring that holds a fence in its first function, where that has its body on lines of its own."""
    lines = code.split("\n")
    for function in ast.walk(ast.parse(code)):
        if isinstance(function, ast.FunctionDef) and function.body[0].lineno > function.lineno:
            row = function.body[0].lineno - 1
            indent = lines[row][: function.body[0].col_offset]
            text = ['"""An example:', "", "```python", "x = 1", "```", '"""']
            return "\n".join([*lines[:row], *(indent + line for line in text), *lines[row:]])
    return code


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(dressed())
def test_the_code_of_dressed_solutions_is_evalplus_own(reply: tuple[int, str, str]) -> None:
    number, _, rest = reply
    name = records()[number]["entry_point"]
    assert sanitizer.extract(rest, name) == evalplus.sanitize(rest, name)


@settings(max_examples=150, deadline=None, suppress_health_check=[*SLOW, HealthCheck.function_scoped_fixture])
@given(reply=dressed())
def test_dressed_solutions_are_judged_as_evalplus_does(task: CodeTask, reply: tuple[int, str, str]) -> None:
    number, thoughts, rest = reply
    record = {**records()[number], "plus_input": []}
    expected = evalplus.verdict(record, evalplus.sanitize(rest, record["entry_point"]), "base")
    assert judged(task, Sample(record["task_id"], record), thoughts + rest).passed == expected
