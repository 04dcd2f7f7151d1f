"""What the sections of the configuration are made of: names, numbers, and paths that are taken from its folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
)

from cycleqd.loading import is_file

NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _absolute(path: str, info: ValidationInfo) -> str:
    """Take a relative path from the config file's own folder (the validation context); URLs stay as they are."""
    folder = (info.context or {}).get("folder")
    if folder is None or path.startswith(("s3://", "hf://")):
        return path
    return os.path.normpath(Path(folder) / Path(path).expanduser())


def without(section: Any, setting: str, undecided: str | None) -> Any:
    """A section as it was read, without a setting that leaves the choice open: none was made then.

    Args:
        section: A mapping; anything else is returned as it is, for pydantic to refuse.
        setting: Its name.
        undecided: The value that chooses nothing.
    """
    if isinstance(section, dict) and section.get(setting, ...) == undecided:
        return {name: value for name, value in section.items() if name != setting}
    return section


def absolute_plugin(plugin: str, info: ValidationInfo) -> str:
    """A plug-in class with its file's path made absolute, from the config file's own folder.

    Args:
        plugin: "path/to/file.py:Class"; anything else is returned as it is.
        info: Pydantic's; its context holds the "folder".
    """
    module, _, name = plugin.rpartition(":")
    return f"{_absolute(module, info)}:{name}" if is_file(plugin) else plugin


def stored_by_content(plugin: str, folder: str) -> str:
    """The same class in the copy that seeding names by the file's sha256; what is so named already stays.

    Args:
        plugin: Any class; of one in a file the file is read.
        folder: Where such copies lie in the evolution.
    """
    path = Path(plugin.rpartition(":")[0])
    if not is_file(plugin) or not path.is_file():
        return plugin
    return stored(plugin, f"{folder}/{hashlib.sha256(path.read_bytes()).hexdigest()}.py")


def stored(plugin: str, key: str) -> str:
    """The same class in the copy that seeding makes of its file.

    Args:
        plugin: "path/to/file.py:Class"; anything else is returned as it is.
        key: Key of the copy, relative to the evolution.
    """
    return f"{key}:{plugin.rpartition(':')[2]}" if is_file(plugin) else plugin


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
Plugin = Annotated[
    str, Field(pattern=r"^([a-z][a-z0-9_]*|.+:[A-Za-z_][A-Za-z0-9_]*)$"), AfterValidator(absolute_plugin)
]


class Section(BaseModel):
    """A strict, immutable part of the configuration. The string below a field is its line in docs/configuration.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
