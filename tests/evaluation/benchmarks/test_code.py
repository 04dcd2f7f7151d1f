"""MBPP+ answers and verdicts: a small data set of our own, and EvalPlus' own data where CYCLEQD_BENCHMARKS names it."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.benchmarks.code import codec, rules, sanitizer
from cycleqd.evaluation.benchmarks.code import problem as problems
from cycleqd.evaluation.benchmarks.code.comparing import difference
from cycleqd.evaluation.benchmarks.code.judge import expectation, judge
from cycleqd.evaluation.benchmarks.code.task import CodeTask
from cycleqd.evaluation.sandbox import Finished
from cycleqd.evaluation.sandbox.turnstile import Turnstile
from cycleqd.evaluation.task import Outcome, Sample, Verdict, Workspace
from tests import evalplus

SMALL = Path(__file__).parents[2] / "data" / "code_small.jsonl"
Try = Callable[..., Verdict]


def make(folder: Path, workers: int = 2, **settings: Any) -> CodeTask:
    task = CodeTask(settings, Workspace(folder, workers))
    if missing := task.preflight():
        pytest.skip(" ".join(missing))
    return task


def reply(task: CodeTask, sample: Sample, text: str) -> Verdict:
    episode = task.start(sample)
    assert episode.next(text) is None
    return task.verdict(episode)


def block(code: str) -> str:
    """A blank line ends the code, since EvalPlus takes no single line for code."""
    return f"Here it is:\n```python\n{code}\n\n```\nDone."


def early(statements: str) -> str:
    """An answer that runs `statements` before any call: EvalPlus keeps imports, definitions and assignments alone."""
    body = textwrap.indent(statements.strip(), "    ")
    return f"def early():\n{body}\n    return 1\ndef total(xs, done=early()):\n    return done"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeTask]:
    with make(tmp_path_factory.mktemp("code")) as task:
        yield task


@pytest.fixture(scope="module")
def samples(task: CodeTask) -> dict[str, Sample]:
    return {sample.record["entry_point"]: sample for sample in task.load(SMALL)}


@pytest.fixture
def attempt(task: CodeTask, samples: dict[str, Sample]) -> Try:
    return lambda code, entry="total": reply(task, samples[entry], block(code))


# Answers and prompts


def test_the_prompt_is_evalplus_for_chat_models(task: CodeTask, samples: dict[str, Sample]) -> None:
    content = task.start(samples["total"]).messages[0]["content"]
    assert content.startswith("Please provide a self-contained Python script that solves the following problem")
    assert content.endswith(
        '```\n"""\nWrite a function to add the numbers of a list.\nassert total([1, 2, 3]) == 6\n"""\n```'
    )


def test_a_prompt_is_filled_from_the_record(tmp_path: Path) -> None:
    task = make(tmp_path, prompt="{entry_point}: {assertion}")
    assert task.start(task.load(SMALL)[0]).messages == [
        {"role": "user", "content": "total: assert total([1, 2, 3]) == 6"}
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"judge": "all"},
        {"max_rounds": 2},
        {"promt": "x"},
        {"seconds": "1"},
        {"memory": 0},
        {"prompt": 5},
        {"reasoning": "think"},
        {"reasoning": ["<think>"]},
        {"reasoning": ["<think>", ""]},
        {"reasoning": None},
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        CodeTask(settings, Workspace(tmp_path))


def test_a_prompt_reaches_into_no_object(tmp_path: Path) -> None:
    task = make(tmp_path, prompt="{prompt.__class__}")
    with pytest.raises(InvalidInputError, match="cannot be filled"):
        task.start(task.load(SMALL)[0])


def test_a_broken_record_is_named(task: CodeTask, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"task_id": "a"}\n')
    with pytest.raises(InvalidInputError, match="record 1: no prompt"):
        task.load(tmp_path)


# Verdicts on the small data


def test_references_pass(task: CodeTask, samples: dict[str, Sample]) -> None:
    for sample in samples.values():
        verdict = reply(task, sample, block(sample.record["canonical_solution"]))
        assert verdict == Verdict(Outcome.PASSED, "plus: all " + verdict.reason[10:], {"base": True, "plus": True})


def test_base_and_plus_are_told_apart(tmp_path: Path) -> None:
    only_base = block("def odd(n):\n    return n in (1, 3, 5)")
    with make(tmp_path, judge="base") as base, make(tmp_path) as plus:
        sample = next(s for s in base.load(SMALL) if s.record["entry_point"] == "odd")
        assert reply(base, sample, only_base) == Verdict(
            Outcome.PASSED, "base: all 2 tests passed", {"base": True, "plus": False}
        )
        assert reply(plus, sample, only_base) == Verdict(
            Outcome.WRONG, "plus test 2: another value than the reference's", {"base": True, "plus": False}
        )


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("def total(xs):\n    return 0", Outcome.WRONG, "base test 1: another value than the reference's"),
        ("def total(xs):\n    return str(sum(xs))", Outcome.WRONG, "base test 1: another value than the reference's"),
        ("def total(xs:\n", Outcome.FORMAT, "no Python in the reply"),
        (
            "def total(xs):\n    nonlocal xs\n    return 6",
            Outcome.ERROR,
            "base test 1: the code does not run: SyntaxError: name 'xs'",
        ),
        ("def sum_all(xs):\n    return 6", Outcome.ERROR, "base test 1: the code does not run: KeyError: 'total'"),
        ("def total(xs):\n    return xs[9]", Outcome.ERROR, "base test 1: IndexError: list index out of range"),
        ("def total(xs):\n    return object().x", Outcome.ERROR, "base test 1: AttributeError: "),
        (
            "def total(xs):\n    raise ValueError(object())",
            Outcome.ERROR,
            "base test 1: ValueError: <object object at 0x...>",
        ),
        (
            "def total(xs):\n    raise ValueError('\\x1b[31mred')",
            Outcome.ERROR,
            "base test 1: ValueError: \\x1b[31mred",
        ),
        ("def total(xs):\n    while True: pass", Outcome.TIMEOUT, "base test 1: processor time limit"),
        (early("import sys\nsys.exit()"), Outcome.ERROR, "base test 1: the code does not run: SystemExit"),
        (
            "def total(xs):\n    import os; os._exit(0)",
            Outcome.ERROR,
            "base test 1: the process ended before its results",
        ),
        ("", Outcome.FORMAT, "no Python in the reply"),
    ],
)
def test_wrong_answers(attempt: Try, code: str, outcome: Outcome, reason: str) -> None:
    verdict = attempt(code)
    assert verdict.outcome is outcome
    assert verdict.reason.startswith(reason)
    assert verdict.detail == {"base": False, "plus": False}


def test_sleeping_is_a_time_out_of_the_clock(tmp_path: Path) -> None:
    with make(tmp_path, seconds=0.1) as task:
        verdict = reply(task, task.load(SMALL)[0], block("import time\ndef total(xs):\n    return time.sleep(60)"))
    assert (verdict.outcome, verdict.reason) == (Outcome.TIMEOUT, "base test 1: clock time limit")


def test_answers_may_print_read_and_return_equal_things(attempt: Try) -> None:
    assert (
        attempt("print('hello')\ndef total(xs):\n    print(xs)\n    return float(sum(xs))").passed is False
    )  # 10**30 + 1
    assert attempt("import collections\ndef letters(w):\n    return collections.Counter(w)", "letters").passed
    assert attempt("def mean(xs):\n    return sum(xs) / len(xs) + 1e-8", "mean").passed
    assert attempt("def circle(r):\n    return 3.14159 * r * r", "circle").passed
    assert not attempt("def circle(r):\n    return 3.1 * r * r", "circle").passed
    assert attempt("def similar_elements(a, b):\n    return (x for x in a if x in b)", "similar_elements").passed
    assert attempt("def check_str(w):\n    return w[:1].isupper() or None", "check_str").passed
    assert attempt("import numpy\ndef odd(n):\n    return numpy.bool_(n % 2 == 1)", "odd").passed


def test_a_suite_without_tests_is_passed(task: CodeTask, tmp_path: Path) -> None:
    record = {**json.loads(SMALL.read_text().splitlines()[0]), "plus_input": []}
    (tmp_path / "base.jsonl").write_text(json.dumps(record) + "\n")
    verdict = reply(task, task.load(tmp_path)[0], block("def total(xs): return sum(xs)"))
    assert verdict == Verdict(Outcome.PASSED, "plus: all 0 tests passed", {"base": True, "plus": True})


def test_any_answer_to_are_equivalent_passes_as_in_evalplus() -> None:
    assert rules.agrees(None, True, [1, 2], "are_equivalent", 0)


def test_state_does_not_pass_from_base_to_plus(attempt: Try) -> None:
    code = "seen = []\ndef odd(n):\n    seen.append(n)\n    return n % 2 == 1 if len(seen) < 3 else None"
    assert attempt(code, "odd").passed


# Hostile answers: none of them may pass, or do more than fail

WRITE = """import os
for fd in range(3, 64):
    try: os.write(fd, {lines})
    except OSError: pass
os._exit(0)
"""


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return 0\ndef total(xs): return A()",
        "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef total(xs): return A(1)",
        "class A(list):\n    def __eq__(self, o): return True\ndef total(xs): return A([1])",
        "class M(type):\n    def __eq__(self, o): return True\n    __hash__ = type.__hash__\n"
        "class A(metaclass=M): pass\ndef total(xs): return A",
        early(
            "import builtins\nbuiltins.all = lambda *_: True\nbuiltins.len = lambda *_: 0\n"
            "builtins.zip = lambda *_, **__: []"
        ),
        early("import sys, json\njson.dumps = lambda *_: '[\"v\", true]'"),
        early(
            "import sys\nfor m in list(sys.modules.values()):\n"
            "    for n in ('agrees', 'judge', 'encode', '_exact', 'longest_run'):\n"
            "        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)"
        ),
        early(WRITE.format(lines="b'[\"v\", true]\\n' * 50")),
        early(WRITE.format(lines='b\'["s", [0]]\\n["passed"]\\n{{"a": 1}}\\n[[[[\\n\\xff\\n\'')),
        early(WRITE.format(lines='b\'["c", "total = sum"]\\n\' * 50')),
        "import os, signal\ndef total(xs):\n    signal.signal = signal.setitimer = lambda *_: None\n"
        "    os._exit(0)\n    return 1",
        early("import atexit\natexit.register(lambda: print('[\"v\", 6]'))\nraise SystemExit(0)"),
        "def total(xs):\n    while True: yield 6",
        "def total(xs):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
        "def total(xs):\n    x = []\n    x.append(x)\n    return x",
        "def total(xs): return 'x' * (80 << 20)",
        "def total(xs): return 10 ** 10 ** 6",
    ],
)
def test_cheating_does_not_pass(attempt: Try, code: str) -> None:
    assert sanitizer.extract(block(code), "total").strip() == code  # nothing of the attack is lost before it runs
    verdict = attempt(code)
    assert not verdict.passed
    assert verdict.detail == {"base": False, "plus": False}


def test_gold_answers_are_not_in_the_box(attempt: Try, task: CodeTask) -> None:
    """It looks through every object and file for the reference's code and values, and passes if it finds them."""
    code = """
import gc, os, sys
def total(xs):
    for found in gc.get_objects():
        try:
            if isinstance(found, dict) and ("canonical_solution" in found or "expected" in found): return sum(xs)
        except Exception: pass
    frame = sys._getframe()
    while frame:
        if any(name in frame.f_locals for name in ("expected", "reference", "canonical_solution")): return sum(xs)
        frame = frame.f_back
    for top in ("/tmp", "/runner", "/dev/shm", "/var", "/root", "/home", "/work"):
        for folder, _, names in os.walk(top):
            if any(name.endswith((".json", ".jsonl", ".gz")) for name in names): return sum(xs)
    return None
"""
    assert attempt(code).outcome is Outcome.WRONG


def test_an_answer_that_switches_the_timers_off_meets_the_boxs_limit(tmp_path: Path) -> None:
    code = (
        "import signal\ndef total(xs):\n    for number in (14, 27): signal.signal(number, signal.SIG_IGN)\n"
        "    while True: pass\n    return 0"
    )
    with make(tmp_path, seconds=0.5) as task:
        verdict = reply(task, task.load(SMALL)[0], block(code))
    assert (verdict.outcome, verdict.reason) == (Outcome.TIMEOUT, "base test 1: processor time limit of the box")


def test_chosen_hash_values_do_not_stop_the_judge() -> None:
    colliding = [i * ((1 << 61) - 1) for i in range(2000)]
    with pytest.raises(ValueError, match="hash"):
        codec.decode(["s", *colliding])
    assert not rules.agrees(colliding, [1], [], "similar_elements", 0)


# The parts


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers())
    ),
    max_leaves=20,
)


@given(plain)
def test_values_survive_the_way(value: Any) -> None:
    back = codec.decode(json.loads(json.dumps(codec.encode(value))))
    assert back == value
    assert type(back) is type(value)


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([*"ltsfdicbrnogkvehx", "int64", "O", "ff"]),
    lambda inner: st.lists(inner, max_size=4),
)


@given(st.lists(trees | st.text(), max_size=4))
def test_no_line_of_anybodys_making_breaks_the_judge(lines: list[Any]) -> None:
    record = json.loads(SMALL.read_text().splitlines()[0])
    problem = problems.prepare(record)
    expected = expectation(problem, ['["v", 6]', '["v", 0]'], [0.0, 0.0])
    written = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    judged = judge(compare_here, problem, problem.base, expected, Finished(0, written.encode("utf-8", "replace"), b""))
    right = [
        line for line in written.split("\n")[:2] if json_or_none(line) in (["v", 6], ["v", 0], ["v", 6.0], ["v", False])
    ]
    assert judged.outcome is not Outcome.PASSED or len(right) == 2


def compare_here(data: bytes) -> Finished:
    """`comparing.py` without a box."""
    head, *lines, written = data.split(b"\n", 5)
    return Finished(0, json.dumps(difference(json.loads(head), lines[:2], lines[2:], written)).encode(), b"")


def json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def test_verdicts_do_not_depend_on_workers_or_repetition(tmp_path: Path) -> None:
    texts = ["def total(xs):\n    return sum(xs)", "def total(xs):\n    return list({'b', 'a', 'c'})", "import random\n"
             "def total(xs):\n    raise ValueError(random.random(), {'x', 'y', 'z'})"] * 3  # fmt: skip
    found = []
    for workers in (1, 3):
        with make(tmp_path / str(workers), workers) as task:
            sample = task.load(SMALL)[0]
            with ThreadPoolExecutor(workers) as pool:
                found += [
                    list(pool.map(lambda text, t=task, s=sample: reply(t, s, block(text)), texts)) for _ in range(2)
                ]
    assert found[0] == found[1] == found[2] == found[3]


def test_a_reference_that_fails_stops_the_task(task: CodeTask, tmp_path: Path) -> None:
    record = {
        **json.loads(SMALL.read_text().splitlines()[0]),
        "canonical_solution": "\ndef total(xs):\n    return 1 / 0\n",
    }
    (tmp_path / "broken.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InvalidInputError, match=r"Small/1 fails on base test 1 .*ZeroDivisionError"):
        reply(task, task.load(tmp_path)[0], block("def total(xs): return 6"))


def test_alone_means_nobody_beside() -> None:
    turnstile, inside, seen = Turnstile(), Counter[str](), []

    def enter(kind: str) -> None:
        with turnstile.alone() if kind == "alone" else turnstile.shared():
            inside[kind] += 1
            time.sleep(0.005)
            seen.append((kind, inside["alone"], inside["shared"]))
            inside[kind] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, ["shared", "shared", "alone"] * 10))
    assert all(found[1:] == (1, 0) for found in seen if found[0] == "alone")
    assert all(alone == 0 for kind, alone, _ in seen if kind == "shared")
    assert max(shared for _, _, shared in seen) > 1


# EvalPlus' own verdicts


# fmt: off
VARIANTS = {
    "total": ["return float(sum(xs))", "return sum(xs) + 1e-9", "return [sum(xs)]", "return None"],
    "mean": ["return sum(xs) / len(xs) + 1e-8", "return sum(xs) / len(xs) + 1e-3", "return int(sum(xs) / len(xs))",
             "import fractions; return fractions.Fraction(sum(map(int, xs)), len(xs))"],
    "halves": ["return tuple(x / 2 for x in xs)", "return [x / 2 + 1e-9 for x in xs]", "return [x // 2 for x in xs]",
               "import numpy; return numpy.array(xs) / 2", "import numpy; return list(numpy.array(xs) / 2)"],
    "letters": ["import collections; return collections.Counter(xs)", "return list(xs)", "return {}",
                "import collections; return collections.OrderedDict((c, xs.count(c)) for c in sorted(set(xs)))"],
    "pairs": ["return [[i, i * i] for i in range(xs)]", "return tuple((i, i * i) for i in range(xs))",
              "return [(float(i), i * i) for i in range(xs)]", "return zip(range(xs), range(xs))"],
    "check_str": ["return xs[:1].isupper()", "return xs[:1].isupper() or None", "return 1", "return None", "return 0"],
    "circle": ["return 3.14159 * xs * xs", "return 3 * xs * xs", "return 0",
               "import math; return (math.pi * xs * xs,)"],
    "odd": ["return xs % 2", "return bool(xs % 2)", "return str(xs % 2 == 1)",
            "import numpy; return numpy.int64(xs % 2)", "import numpy; return numpy.bool_(xs % 2)"],
    "parts": ["return frozenset(xs.split())", "return sorted(set(xs.split()))", "return set(xs)",
              "return dict.fromkeys(xs.split()).keys()"],
}
# fmt: on


@pytest.mark.parametrize("entry", VARIANTS)
def test_the_rules_are_evalplus(task: CodeTask, samples: dict[str, Sample], entry: str) -> None:
    for body in VARIANTS[entry]:
        code = f"def {entry}(xs):\n    {body}"
        detail = reply(task, samples[entry], block(code)).detail
        base = evalplus.verdict(samples[entry].record, code, "base")
        plus = base and evalplus.verdict(samples[entry].record, code, "plus")
        assert detail == {"base": base, "plus": plus}, body


@pytest.fixture(scope="module")
def real() -> Path:
    folder = Path(os.environ.get("CYCLEQD_BENCHMARKS", "-")) / "mbppplus"
    if not folder.is_dir():
        pytest.skip("CYCLEQD_BENCHMARKS names no folder with mbppplus")
    return folder


@pytest.mark.timeout(900)
def test_the_references_of_mbpp_plus_pass(real: Path, tmp_path: Path) -> None:
    """All but one, of which EvalPlus does not keep the helper: a function that yields, and returns nothing."""
    with make(tmp_path) as task, ThreadPoolExecutor(2) as pool:
        loaded = list(task.load(real))
        verdicts = list(pool.map(lambda s: reply(task, s, block(s.record["canonical_solution"])), loaded))
    assert len(verdicts) == 378
    failed = [sample.id for sample, verdict in zip(loaded, verdicts, strict=True) if not verdict.passed]
    assert failed == ["Mbpp/630"]


def test_wrong_answers_to_mbpp_plus_fail(real: Path, tmp_path: Path) -> None:
    """Every problem answered with None."""
    with make(tmp_path, judge="base") as task, ThreadPoolExecutor(2) as pool:
        loaded = list(task.load(real))
        nothing = [f"def {sample.record['entry_point']}(*given):\n    return None" for sample in loaded]
        pairs = list(zip(loaded, nothing, strict=True))
        verdicts = list(pool.map(lambda pair: reply(task, pair[0], block(pair[1])), pairs))
    assert [sample.id for sample, verdict in zip(loaded, verdicts, strict=True) if verdict.passed] == []


WRAPPERS = {
    "as text": "return str(result)",
    "as another sequence": "return list(result) if isinstance(result, tuple) else tuple(result)",
    "nearly": "return result + 1e-8",
    "in a list": "return [result]",
    "raising": "raise ValueError",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_spoilt_references_of_mbpp_plus_are_judged_as_evalplus_does(real: Path, tmp_path: Path, wrapper: str) -> None:
    """Every twelfth problem's reference, its result changed a little."""
    with make(tmp_path, judge="base") as task:
        for sample in list(task.load(real))[::12]:
            name = sample.record["entry_point"]
            code = re.sub(rf"\b{name}\b", "_right", sample.record["canonical_solution"]) + f"\ndef {name}(*given):\n"
            code += f"    result = _right(*given)\n    {WRAPPERS[wrapper]}\n    return result\n"
            kept = sanitizer.extract(block(code), name)
            expected = evalplus.verdict(sample.record, kept, "base")
            assert reply(task, sample, block(code)).detail["base"] == expected, (sample.id, wrapper)
