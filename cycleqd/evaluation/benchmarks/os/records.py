"""Reading AgentBench's os-interaction records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.task import Sample
from cycleqd.outside import parse_json, read_file

_LANGUAGES = ("bash", "python")


def read(file: Path) -> list[Sample]:
    """All records of a file, in its order, each reduced to what an episode uses.

    A sample's record has: problem (messages), description, init_script (list), start, check (list, None for the example
    script), example_script, match. A script is (language, text). Its group is "match", "answer" (a check whose first
    script is the example's) or "state".

    Args:
        file: AgentBench's JSON list.

    Raises:
        InvalidInputError: A record is broken; the message names it.
    """
    try:
        entries = parse_json(read_file(file))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"The OS task's records cannot be read from {file} ({error}).") from error
    if not isinstance(entries, list):
        raise InvalidInputError(f"{file} is not a JSON list of os-interaction records.")
    return [_sample(entry, str(number), file) for number, entry in enumerate(entries)]


def _sample(entry: Any, number: str, file: Path) -> Sample:
    try:
        judge = entry["config"]["config"]
        record = {
            "problem": [{"role": turn["role"], "content": turn["content"]} for turn in entry["problem"]],
            "description": judge["description"],
            "init_script": [_script(one) for one in judge.get("init_script") or ()],
            "start": _script(judge["start"]) if judge.get("start") else None,
            "check": [one and _script(one) for one in judge.get("check") or ()],
            "example_script": _script(judge["example_script"]) if judge.get("example_script") else None,
            "match": judge.get("match"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"Record {number} of {file} is not an os-interaction record ({error!r}): correct the file."
        ) from error
    _check_verdict(record, f"Record {number} of {file}")
    return Sample(number, record, _group(record))


def _script(value: Any) -> tuple[str, str]:
    language, text = value
    if language not in _LANGUAGES or not isinstance(text, str):
        raise ValueError(f"a script in {language!r}, not in one of {_LANGUAGES}")
    return language, text


def _check_verdict(record: Mapping[str, Any], where: str) -> None:
    if not record["check"] and not (isinstance(record["match"], dict) and {"answer", "regex"} & set(record["match"])):
        raise InvalidInputError(f"{where} has neither a check nor a match with an answer or a regex: correct the file.")
    if None in record["check"] and record["example_script"] is None:
        raise InvalidInputError(f"{where} checks against its example script but has none: correct the file.")


def _group(record: Mapping[str, Any]) -> str:
    if record["match"]:
        return "match"
    return "answer" if record["check"][0] is None else "state"
