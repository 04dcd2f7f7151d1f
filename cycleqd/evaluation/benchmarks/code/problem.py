"""MBPP+ records, read with EvalPlus' own functions, and prepared for the box."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.evaluation.benchmarks.code import codec
from cycleqd.evaluation.benchmarks.code.sanitizer import replaced_modules
from cycleqd.evaluation.benchmarks.inputs import json_lines, single_file
from cycleqd.outside import parse_json

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
_INSTALL = "`pip install 'cycleqd[code]'` and `pip install --no-deps evalplus==0.3.1`"
_importing = threading.Lock()


@dataclass(frozen=True)
class Suite:
    """The arguments of one suite of tests (base or plus), one encoded line each."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One record. `digest` covers everything that its expected values depend on."""

    id: str
    entry_point: str
    reference: str
    atol: float
    base: Suite
    plus: Suite
    digest: str


def read_records(data: Path) -> list[Mapping[str, Any]]:
    """The records of an MBPP+ file, in its order.

    Args:
        data: A .jsonl or .jsonl.gz file, or a folder with one.

    Raises:
        InvalidInputError: It cannot be read, or a record (named in the message) lacks a field.
    """
    file = single_file(data, ".jsonl", ".jsonl.gz")
    try:
        records = [parse_json(line) for line in json_lines(file)]
    except ValueError as problem:
        raise InvalidInputError(f"{file} cannot be read as JSON lines ({problem}): give an MBPP+ file.") from None
    for number, record in enumerate(records, 1):
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise InvalidInputError(f"{file}, record {number}: no {', '.join(missing)}, which MBPP+ records have.")
    return records


def prepare(record: Mapping[str, Any]) -> Problem:
    """A record as a problem.

    The types that JSON lost (tuples, sets, ...) come back by EvalPlus' own table, which goes by MBPP's numbers and is
    applied to ids "Mbpp/N" only.

    Args:
        record: One of `read_records`.
    """
    kept = {name: record[name] for name in FIELDS}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return Problem(
        id=record["task_id"],
        entry_point=record["entry_point"],
        reference=record["prompt"] + record["canonical_solution"],
        atol=record["atol"],
        base=Suite("base", _arguments(record["task_id"], record["base_input"])),
        plus=Suite("plus", _arguments(record["task_id"], record["plus_input"])),
        digest=digest,
    )


def parts(prompt: str) -> tuple[str, str]:
    """What a prompt of MBPP+ says, with a full stop at its end, and the assertions that it shows.

    Args:
        prompt: A record's: a text in triple quotes, assertions at its end.
    """
    inside = prompt.strip().strip('"')
    said, mark, rest = inside.partition("assert ")
    said = said.strip()
    return said if said.endswith(".") else f"{said}.", (mark + rest).strip()


def _arguments(task_id: str, inputs: Sequence[Any]) -> tuple[str, ...]:
    if task_id.startswith("Mbpp/"):
        inputs = _evalplus("data.mbpp").mbpp_deserialize_inputs(task_id, inputs)
    return tuple(json.dumps(codec.encode(list(arguments))) for arguments in inputs)


def missing() -> list[str]:
    """What the code task needs and this Python lacks, one sentence each."""
    try:
        for name in ("data.mbpp", "eval._special_oracle"):
            _evalplus(name)
        for name in ("tree_sitter", "tree_sitter_python"):
            importlib.import_module(name)
    except ImportError as problem:
        return [f"The code task needs evalplus 0.3.1 and tree-sitter ({problem}): run {_INSTALL}."]
    return []


def package_folder(package: str) -> Path:
    """Where a package is installed.

    Args:
        package: Its import name.

    Raises:
        UnavailableError: It is not.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(f"The code task needs {package}, which is not installed: run {_INSTALL}.")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _evalplus(name: str) -> Any:
    """A module of EvalPlus, without `evalplus.data`'s __init__, which needs the `datasets` library for EvalPerf."""
    package = ModuleType("evalplus.data")
    package.__path__ = [str(package_folder("evalplus") / "data")]
    with _importing, replaced_modules({"evalplus.data": package}):
        return importlib.import_module(f"evalplus.{name}")
