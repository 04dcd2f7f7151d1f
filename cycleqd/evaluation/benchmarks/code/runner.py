"""Runs one answer on its inputs, in a fork of a warm box. `codec.py` and `sanitizer.py` are in the same folder.

stdin: one JSON line {"code" or "reply", "entry_point", "extraction": seconds, "limits": [seconds, ...], "iterate"},
then one line an input: its encoded arguments. Of a reply `sanitizer.py` keeps the code, and a first line says which:

    ["c", code]

stdout: one JSON line an input, until the first that fails:

    ["v", value]          returned; `codec.encode` wrote the value
    ["h", digest]         returned a value of more than 32 MiB, or than what is left of 64: its `codec.digest`
    ["e", sentence]       raised
    ["t", "cpu"|"wall"]   ran past its limit
    ["x", sentence]       the code itself could not be run (instead of all others, as the next three)
    ["f", ""]             the reply holds no Python
    ["r", sentence]       its code could not be extracted
    ["t", "extraction"]   extracting it ran past its limit
    ["s", [seconds, ...]] the last line: processor time of each call

Nothing here is trusted: an answer may rewrite every line. It knows the arguments and never the expected values, so the
only lines that help it are the right ones.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import json
import marshal
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), "/packages"]
import codec  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
import sanitizer  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

sanitizer.extract("def f(x):\n    return x", "f")  # what that loads is in the warm box already

_PRELOADED = (
    "bisect collections copy datetime decimal fractions functools heapq itertools math operator random re statistics"
    " string typing asyncio concurrent.futures.process concurrent.futures.thread multiprocessing.pool"
    " multiprocessing.synchronize"
)
for _name in _PRELOADED.split():  # often imported, or, as the last, not importable without what `_restrict` takes
    importlib.import_module(_name)

_LARGE = 32 << 20  # bytes of a value's line
_TOTAL = 64 << 20  # of all lines
_WALL_FACTOR = 5  # the clock may run this much longer than the processor, before a sleeping answer is stopped
_WALL_SLACK = 3.0
_STACK = 4 << 30

# What EvalPlus takes from an answer: not for safety (the box is that), but because its verdicts depend on it.
_TAKEN: dict[Any, str] = {
    builtins: "exit quit open help",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace "
    "unlink fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir",
}
_ABSENT = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class TimeLimitError(Exception):
    """An ordinary exception, as in EvalPlus: an answer that catches it is ended by the box's own limit."""


class _Unreadable(io.StringIO):
    """A stdin that fails when read."""

    def read(self, *_: Any) -> str:
        raise OSError("no input")

    def readline(self, *_: Any) -> str:  # type: ignore[override]
        raise OSError("no input")

    def readlines(self, *_: Any) -> list[str]:  # type: ignore[override]
        raise OSError("no input")

    def readable(self) -> bool:
        return False


def main() -> None:
    """Take the answer and inputs from stdin, restrict this process, write what the calls return; never returns."""
    lines = sys.stdin.buffer.read().splitlines()
    task = json.loads(lines[0])
    arguments = [codec.decode(json.loads(line)) for line in lines[1:]]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    sys.stdin, sys.stdout, sys.stderr = _Unreadable(), open(1, "w"), open(2, "w")  # noqa: SIM115
    code, line = _code(task)
    if line:
        answers.write(json.dumps(line) + "\n")
    if "numpy" in code:  # EvalPlus has it loaded; it cannot be imported without what `_restrict` takes
        with suppress(ImportError):
            importlib.import_module("numpy")
    _restrict()
    random.seed(0)  # an answer that draws numbers gets the same ones in every run
    for text in _answers(task, code, arguments) if code else ():
        answers.write(text + "\n")
    os._exit(0)  # threads and exit handlers of the answer have no say


def _restrict() -> None:
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, _STACK))
    for owner, names in _TAKEN.items():
        for name in names.split():
            setattr(owner, name, None)
    for name in _ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]


def _code(task: dict[str, Any]) -> tuple[str, list[str] | None]:
    """The code to run, and the line that says what was kept of a reply, or why nothing was. Nothing has run yet."""
    if "code" in task:
        return task["code"], None

    def stop(number: int, frame: object) -> None:
        raise TimeLimitError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, task["extraction"])
    try:
        code = sanitizer.extract(task["reply"], task["entry_point"])
        return (code, ["c", code]) if sanitizer.is_python(code) else ("", ["f", ""])
    except TimeLimitError:
        return "", ["t", "extraction"]
    except Exception as problem:  # nested too deeply, half a surrogate pair: as EvalPlus' own functions end
        return "", ["r", _sentence(problem)]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answers(task: dict[str, Any], code: str, arguments: list[Any]) -> Iterator[str]:
    """The lines of all calls, up to the first that fails."""
    try:
        namespace: dict[str, Any] = {}
        exec(code, namespace)  # noqa: S102
        function = namespace[task["entry_point"]]
    except BaseException as problem:
        yield json.dumps(["x", _sentence(problem)])
        return
    seconds, left = [], _TOTAL
    for inputs, limit in zip(arguments, task["limits"], strict=True):
        began = time.process_time()
        text, ended = _answer(function, inputs, limit, functools.partial(_written, iterate=task["iterate"], left=left))
        seconds.append(time.process_time() - began)
        left -= len(text)
        yield text
        if ended:
            return
    yield json.dumps(["s", seconds])


def _answer(function: Callable[..., Any], inputs: Any, limit: float, written: Callable[[Any], str]) -> tuple[str, bool]:
    """The line of one call, and whether it is the last."""
    late: list[str] = []

    def stop(number: int, frame: object) -> None:
        late.append("cpu" if number == signal.SIGPROF else "wall")
        raise TimeLimitError("time limit")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, limit * _WALL_FACTOR + _WALL_SLACK)
        try:
            value = function(*inputs)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        return written(value), False
    except BaseException as problem:
        return json.dumps(["t", late[0]] if late else ["e", _sentence(problem)]), True


def _written(value: Any, iterate: bool, left: int) -> str:
    """The line of a value: of one that is too large the digest."""
    room = min(_LARGE, left)
    try:
        size = len(marshal.dumps(value))
    except ValueError:  # of another type; most are small
        size = 0
    text = json.dumps(["v", codec.encode(value, iterate)]) if size <= room else ""
    return text if text and len(text) <= room else json.dumps(["h", codec.digest(value)])


def _sentence(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
