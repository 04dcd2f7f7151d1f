"""The inputs of a benchmark, read and checked: settings, data file, positions of records, template of a prompt."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.task import Sample
from cycleqd.outside import is_name, parse_json, read_file, unpack


class BenchmarkSettings(BaseModel):
    """The settings of a task, each a field. `task` names the task in messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: ClassVar[str]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The settings as the configuration has them.

        Args:
            values: Name → value; a setting that is left out has its default.

        Raises:
            InvalidInputError: A name is unknown or a value is out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as problem:
            error = problem.errors()[0]
            name = ".".join(map(str, error["loc"]))
            if error["type"] == "extra_forbidden":
                known = ", ".join(sorted(cls.model_fields))
                raise InvalidInputError(f"The {cls.task} task has no setting {name!r}: use {known}.") from None
            raise InvalidInputError(f"The {cls.task} task's {name} is {error['input']!r}: {error['msg']}.") from None


def named_rounds(**presets: int) -> Callable[[Any], Any]:
    """What reads a setting of rounds that may be the name of a preset.

    Args:
        presets: Name → rounds.
    """
    return lambda setting: presets.get(setting, setting) if isinstance(setting, str) else setting


class _PlainFields(string.Formatter):
    """`str.format` without attributes: a template reaches into no object."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise KeyError(field_name)
        return super().get_field(field_name, args, kwargs)


def filled(template: str, fields: Mapping[str, Any], record: str) -> str:
    """A prompt.

    Args:
        template: In the form of `str.format`, with {field} and {field[key]}.
        fields: What the template may name.
        record: The record that the fields are from, for the message.

    Raises:
        InvalidInputError: The template names a field that does not exist.
    """
    try:
        return _PlainFields().vformat(template, (), fields)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"The task's `prompt` cannot be filled from {record} ({error!r}): name fields of {', '.join(fields)}."
        ) from None


def single_file(data: Path, *endings: str) -> Path:
    """The data file itself, or the only one in a folder.

    Args:
        data: A file or a folder.
        endings: How the names of data files in a folder end.

    Raises:
        InvalidInputError: The folder holds none or several.
    """
    if data.is_file():
        return data
    files = sorted(file for ending in endings for file in data.glob(f"*{ending}"))
    if len(files) != 1:
        raise InvalidInputError(
            f"The task needs one {' or '.join(endings)} file; {data} holds {len(files)}: name the file as `data`."
        )
    return files[0]


def json_lines(file: Path) -> list[bytes]:
    """The lines of a data file that are not blank; one that ends with .gz is unpacked.

    Args:
        file: JSON lines.

    Raises:
        InvalidInputError: It cannot be read, or is too large.
    """
    try:
        data = unpack(file) if file.suffix == ".gz" else read_file(file)
    except (OSError, EOFError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read ({error}): give a file of JSON lines.") from None
    return [line for line in data.splitlines() if line.strip()]


def positions(setting: Any, file: Path) -> list[str] | None:
    """A setting of positions as the samples' ids.

    Args:
        setting: 0-based positions of records: a list, or the name of a JSON file with one; None for no setting.
        file: The data file; the JSON file is in the same folder.

    Raises:
        InvalidInputError: The setting is neither, or its file cannot be read.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        path = file.parent / setting
        try:
            setting = parse_json(read_file(path)) if is_name(setting) else setting
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"The ids of {file} cannot be read from {path} ({error}): give a JSON list."
            ) from error
    if not isinstance(setting, list):
        raise InvalidInputError(
            f"The ids of {file} are {setting!r}: give a list of 0-based positions or the name of such a file."
        )
    return [str(one) for one in setting]


def selected(samples: list[Sample], setting: Any, file: Path) -> list[Sample]:
    """The samples at the positions of a setting, in its order; all without a setting.

    Args:
        samples: All samples of the data file; their ids are their positions.
        setting: As of `positions`.
        file: The data file.

    Raises:
        InvalidInputError: A position does not exist.
    """
    ids = positions(setting, file)
    if ids is None:
        return samples
    by_id = {sample.id: sample for sample in samples}
    if absent := [one for one in ids if one not in by_id]:
        raise InvalidInputError(
            f"The ids name record {absent[0]}, but {file} has {len(samples)} records: correct them."
        )
    return [by_id[one] for one in ids]
