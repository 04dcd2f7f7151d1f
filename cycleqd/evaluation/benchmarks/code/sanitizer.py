"""The code that EvalPlus' `sanitize` keeps of a reply. Runs in the box, with `runner.py`: replies are hostile.

EvalPlus first looks for the most lines in a row that are Python, then keeps of them, by tree-sitter's reading, the
imports and what the entry point needs. The second half here is EvalPlus' own code. Its search parses every pair of a
first and a last line, a minute for 500 lines; `longest_run` finds the same lines and parses only where it must.
"""

from __future__ import annotations

import ast
import bisect
import codeop
import functools
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

# The parser reads token by token. With the second flag it tells whether it failed at the end of its text. Where it
# failed before that, it fails in the same way on every text that begins like this one.
_FLAGS = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined, unused-ignore]
_UNUSED = ("evalplus.data", "evalplus.syncheck", "tqdm")  # imported for EvalPlus' command line and the search


class _HopelessError(Exception):
    """No text that begins like this is Python."""


def extract(reply: str, entry_point: str) -> str:
    """What `evalplus.sanitize.sanitize(reply, entry_point)` returns.

    Args:
        reply: A model's reply, with or without a markdown block.
        entry_point: Name of the function that is asked for.

    Raises:
        RecursionError, UnicodeEncodeError: As there, on deeply nested code and on half a surrogate pair.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's, about every other number in prose
        kept: str = _evalplus().sanitize(reply, entry_point)
    return kept


@contextmanager
def replaced_modules(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Let imports find these modules instead of their own, for the length of the block.

    Args:
        modules: Name → what an import finds.
    """
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, known in before.items():
            del sys.modules[name]
            if known is not None:
                sys.modules[name] = known


def is_python(code: str) -> bool:
    """Whether a text parses and is not blank.

    Args:
        code: The text.
    """
    try:
        return bool(code.strip()) and _parse(code) is not None
    except _HopelessError:
        return False


def longest_run(text: str) -> str:
    """The lines in a row that are Python and hold the most lines which are not blank, as EvalPlus' `code_extract`.

    They are two or more; among equals those that begin first, then those that end first. The first line of the text
    where there are none.

    Args:
        text: A model's reply.
    """
    search = _Search(text.split("\n"))
    first, last = search.run()
    return "\n".join(search.lines[first : last + 1])


class _Search:
    """The search for the longest run in `lines`; `filled[n]` is how many of the first n are not blank."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.filled = list(itertools.accumulate((bool(line.strip()) for line in lines), initial=0))
        # A carriage return within a line counts as a line for the parser and not for EvalPlus.
        self.aligned = not any("\r" in line[:-1] for line in lines)

    def run(self) -> tuple[int, int]:
        """The first and the last line of the longest run."""
        best, longest, continued = (0, 0), 0, set[int]()
        for first in range(len(self.lines)):
            if self._filled(first, len(self.lines) - 1) <= longest:
                break
            if first in continued:
                continue
            parsed = functools.cache(functools.partial(self._parsed, first))
            for last in self._ends(first, self._reach(first, longest, parsed), longest):
                module = parsed(last)
                if module is not None:
                    best, longest = (first, last), self._filled(first, last)
                    continued |= self._continued(first, module)
                    break
        return best

    def _filled(self, first: int, last: int) -> int:
        return self.filled[last + 1] - self.filled[first]

    def _parsed(self, first: int, last: int) -> ast.Module | None:
        return _parse("\n".join(self.lines[first : last + 1]))

    def _reach(self, first: int, longest: int, parsed: Callable[[int], ast.Module | None]) -> int:
        """The last line up to which the lines from `first` on are Python or can become it; `first` - 1 if that is none,
        or too early for a run longer than `longest`. Steps grow, so that a line of prose costs one short parse."""

        def hopeless(last: int) -> bool:
            try:
                parsed(last)
            except _HopelessError:
                return True
            return False

        needed = bisect.bisect_right(self.filled, self.filled[first] + longest) - 1
        end, reach, step = len(self.lines) - 1, first - 1, 1
        while reach < end:
            last = min(reach + step, needed if reach < needed else end)
            if hopeless(last):
                between = range(reach + 1, last)
                return reach + bisect.bisect_left(between, True, key=hopeless) if last > needed else first - 1
            reach, step = last, 2 * step
        return reach

    def _ends(self, first: int, reach: int, longest: int) -> Iterator[int]:
        """The last lines to try, in EvalPlus' order of preference: most lines that are not blank, then the shortest."""
        while reach > first and self._filled(first, reach) > longest:
            group = bisect.bisect_left(self.filled, self.filled[reach + 1]) - 1
            yield from range(max(group, first + 1), reach + 1)
            reach = group - 1

    def _continued(self, first: int, module: ast.Module) -> set[int]:
        """The lines between and at the beginnings of this run's later statements. No run that begins there is worth a
        look: with what is before it, it is Python too, and begins earlier."""
        if not self.aligned:
            return set()
        lines = set[int]()
        for before, statement in itertools.pairwise(module.body):
            if statement.col_offset == 0:
                decorators = getattr(statement, "decorator_list", [])
                begin = min(node.lineno for node in (statement, *decorators))
                lines.update(range(first + (before.end_lineno or 0), first + begin))
        return lines


def _parse(code: str) -> ast.Module | None:
    """None where the code ends too early. _HopelessError where it can never become Python, whatever follows."""
    if "\0" in code:  # a SyntaxError since Python 3.11.4, before that a ValueError
        raise _HopelessError
    try:
        module: ast.Module = compile(code, "<unknown>", "exec", _FLAGS, dont_inherit=True)
    except SyntaxError as problem:
        if problem.msg == "incomplete input":
            return None
        raise _HopelessError from None
    except MemoryError:  # EvalPlus takes it as "not Python": the parser's stack is full
        raise _HopelessError from None
    return module


@functools.cache
def _evalplus() -> ModuleType:
    """A copy of `evalplus.sanitize` that uses our search."""
    spec = importlib.util.find_spec("evalplus.sanitize")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stubs = {name: ModuleType(name) for name in _UNUSED}
    for stub in stubs.values():
        setattr(stub, "__getattr__", lambda wanted: None)  # noqa: B010
    with replaced_modules(stubs):
        spec.loader.exec_module(module)
    vars(module)["code_extract"] = functools.lru_cache(maxsize=1)(longest_run)  # `sanitize` may ask for it twice
    return module
