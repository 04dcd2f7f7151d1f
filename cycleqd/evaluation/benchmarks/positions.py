"""Choosing AgentBench records by their 0-based positions, which are the samples' ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.task import Sample


def positions(setting: Any, file: Path) -> list[str] | None:
    """A setting of positions, a list or the name of a JSON file beside the data, as ids; None when not set."""
    if setting is None:
        return None
    if isinstance(setting, str):
        path = file.parent / setting
        try:
            setting = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"The ids of {file} cannot be read from {path} ({error}): give a JSON list."
            ) from error
    if not isinstance(setting, list):
        raise InvalidInputError(
            f"The ids of {file} are {setting!r}: give a list of 0-based positions or the name of such a file."
        )
    return [str(one) for one in setting]


def selected(samples: Sequence[Sample], ids: Sequence[str], file: Path) -> list[Sample]:
    """The samples with these ids, in the ids' order. Raises InvalidInputError for one that does not exist."""
    by_id = {sample.id: sample for sample in samples}
    if absent := [one for one in ids if one not in by_id]:
        raise InvalidInputError(
            f"The ids name record {absent[0]}, but {file} has {len(samples)} records: correct them."
        )
    return [by_id[one] for one in ids]
