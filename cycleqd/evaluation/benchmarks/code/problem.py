"""MBPP+ records, read with EvalPlus' own functions, and prepared for the box."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.evaluation.benchmarks.code import codec

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
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
    """Read a .jsonl or .jsonl.gz file, or the only such file of a folder. Raises InvalidInputError, naming the line."""
    files = sorted([*data.glob("*.jsonl"), *data.glob("*.jsonl.gz")]) if data.is_dir() else [data]
    if len(files) != 1:
        raise InvalidInputError(f"{data} holds {len(files)} .jsonl or .jsonl.gz files: a code task needs exactly one.")
    try:
        records = list(_evalplus("data.utils").stream_jsonl(str(files[0])))
    except (OSError, ValueError) as problem:
        raise InvalidInputError(f"{files[0]} cannot be read as JSON lines ({problem}): give an MBPP+ file.") from None
    for number, record in enumerate(records, 1):
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise InvalidInputError(f"{files[0]}, record {number}: no {', '.join(missing)}, which MBPP+ records have.")
    return records


def prepare(record: Mapping[str, Any]) -> Problem:
    """Turn a record into a problem.

    The types that JSON lost (tuples, sets, ...) come back by EvalPlus' own table, which goes by MBPP's numbers and is
    applied to ids "Mbpp/N" only.
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


def _arguments(task_id: str, inputs: Sequence[Any]) -> tuple[str, ...]:
    if task_id.startswith("Mbpp/"):
        inputs = _evalplus("data.mbpp").mbpp_deserialize_inputs(task_id, inputs)
    return tuple(json.dumps(codec.encode(list(arguments))) for arguments in inputs)


def missing() -> list[str]:
    """What the code task needs and this Python lacks, one sentence each."""
    try:
        _evalplus("data.mbpp")
        _evalplus("eval._special_oracle")
        importlib.import_module("tree_sitter")
        importlib.import_module("tree_sitter_python")
    except (ImportError, UnavailableError) as problem:
        return [f"The code task needs evalplus 0.3.1 and tree-sitter ({problem}): run `pip install 'cycleqd[code]'` "
                "and `pip install --no-deps evalplus==0.3.1`."]  # fmt: skip
    return []


@functools.cache
def _evalplus(name: str) -> Any:
    with _importing, _without_datasets():
        return importlib.import_module(f"evalplus.{name}")


@contextmanager
def _without_datasets() -> Iterator[None]:
    """Import from `evalplus.data` without its __init__, which needs the `datasets` library for EvalPerf."""
    spec = importlib.util.find_spec("evalplus")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("evalplus is not installed")
    package = ModuleType("evalplus.data")
    package.__path__ = [str(Path(spec.submodule_search_locations[0], "data"))]
    before = sys.modules.get("evalplus.data")
    sys.modules["evalplus.data"] = before or package
    try:
        yield
    finally:
        if before is None:
            del sys.modules["evalplus.data"]
