"""cycleqd init: a commented starting configuration for a user's own models and tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cycleqd.cli.output import say
from cycleqd.errors import InvalidInputError
from cycleqd.search.config import parse

BENCHMARKS = ("code", "db", "os")
"""The built-in benchmarks: a task of such a name needs no class."""

_TEMPLATE = """\
# An evolution. Relative paths are taken from this file's folder; docs/configuration.md lists all settings.
# Next: `cycleqd validate -c {file}` checks everything and estimates the cost, `cycleqd run -c {file}` runs it.
{name}
seed: 0 # of every random draw; replicates differ in it

models: # Hugging Face folders of safetensors, or s3:// prefixes; the experts were fine-tuned from the base
  {base}
  experts: # with the task that each was fine-tuned for
{experts}

tasks: # each one is an archive of the evolution; `report_only: true` makes it a task that is reported only
{tasks}

method: # frozen at the start, as everything above; `place` may change at any time
  generations: 200 # a generation makes one child, for the next archive in turn
  # stop: {{patience: 50}} # end after so many generations without a better average

place:
  services: embedded # S3 and MLflow servers of this machine's own; external: those that the environment names
  folder: .cycleqd # for the servers' data and cached checkpoints
"""
_SPLIT = "    split: {share: 0.5} # half of the samples for the search, half held out for the report"


def write(path: Path, name: str | None, base: str, experts: Sequence[str], tasks: Sequence[str]) -> None:
    """Write the configuration to a new file.

    Args:
        path: The new file.
        name: The evolution's; None is the file's name without its suffix.
        base: A folder or an s3:// prefix; a relative path from the working folder, as all here.
        experts: Each NAME=PATH:TASK.
        tasks: Each NAME=DATA for a built-in benchmark, NAME=DATA,CLASS for another task.

    Raises:
        InvalidInputError: The file exists, or the result would not be a valid configuration: nothing is written.
    """
    for argument in (str(path), name or "", base, *experts, *tasks):
        if not argument.isprintable():
            raise InvalidInputError(f"{argument!r} holds a character that cannot be printed; rename it")
    text = _draft(path, name or path.stem, base, experts, tasks)
    config = parse(yaml.safe_load(text), "cycleqd init")
    if (len(config.models.experts), len(config.tasks)) != (len(experts), len(tasks)):
        raise InvalidInputError("two experts or two tasks have the same name; give each a name of its own")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InvalidInputError(f"{path} exists; name another file with -c, or remove it") from error
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written ({error.strerror}); name another file with -c") from error
    say(f"wrote {path}; next: cycleqd validate -c {path}")


def _draft(path: Path, name: str, base: str, experts: Sequence[str], tasks: Sequence[str]) -> str:
    """The configuration's text, for a file at `path`; arguments as for `write`."""
    return _TEMPLATE.format(
        file=path,
        name=_line({"name": name}),
        base=_line({"base": _location(base, path)}),
        experts="\n".join(_expert(argument, path) for argument in experts),
        tasks="\n".join(_task(argument, path) for argument in tasks),
    )


def _expert(argument: str, path: Path) -> str:
    name, equals, rest = argument.partition("=")
    location, colon, task = rest.rpartition(":")
    if not (name and equals and location and colon and task):
        raise InvalidInputError(f"--expert {argument}: write NAME=PATH:TASK, such as coder=/models/coder:code")
    return f"    {_line({name: {'path': _location(location, path), 'task': task}})}"


def _task(argument: str, path: Path) -> str:
    name, _, rest = argument.partition("=")
    data, comma, plugin = rest.rpartition(",") if "," in rest else (rest, "", "")
    if not (name and data) or (comma and not plugin):
        raise InvalidInputError(
            f"--task {argument}: write NAME=DATA or NAME=DATA,CLASS, such as code=MbppPlus.jsonl.gz"
        )
    if not plugin and name not in BENCHMARKS:
        raise InvalidInputError(
            f"--task {argument}: '{name}' is not one of the built-in benchmarks {', '.join(BENCHMARKS)};"
            f" add the task's class: {name}={data},path/to/file.py:Class"
        )
    module, _, cls = plugin.rpartition(":")
    if module.endswith(".py"):
        plugin = f"{_location(module, path)}:{cls}"
    key = _line({name: None}).removesuffix(" null")
    cls_line, data_line = _line({"class": plugin or name}), _line({"data": _location(data, path)})
    return f"  {key}\n    {cls_line}\n    {data_line}\n{_SPLIT}"


def _location(location: str, path: Path) -> str:
    """A path of the command line as the file at `path` names it: relative to the file's folder."""
    if location.startswith(("s3://", "hf://")) or Path(location).is_absolute():
        return location
    return os.path.relpath(location, path.parent)


def _line(mapping: Mapping[str, Any]) -> str:
    """One key with its value as a line of YAML: a mapping in braces, texts quoted where YAML needs it."""
    nested = any(isinstance(value, dict) for value in mapping.values())
    style = None if nested else False  # None puts the innermost mapping in braces
    line = yaml.safe_dump(mapping, default_flow_style=style, sort_keys=False, allow_unicode=True, width=float("inf"))
    return line.rstrip()
