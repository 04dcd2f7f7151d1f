"""What is wrong with a configuration, in its own words: the key, its line, what it takes, what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cycleqd.errors import InvalidInputError
from cycleqd.loading import load_class, meant
from cycleqd.search.fields import NAME
from cycleqd.search.operators import Operator

Key = tuple[str | int, ...]

_LONG = 60
_NAMES = "lower-case letters and digits, with '.', '_' and '-' between them"
_QUOTED = re.compile(r"'([^']*)'")
_NUMBERS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "dict": "a section of 'key: value'",
    "model": "a section of 'key: value'",
    "tuple": "a list",
    "list": "a list",
}


def sentences(
    error: ValidationError, kind: type[BaseModel], tree: Any, where: str, lines: Mapping[Key, int]
) -> list[str]:
    """A sentence a key, in the order of the settings: "evolution.yaml:12: method.generations: must be …".

    Args:
        error: Pydantic's.
        kind: The class of the whole.
        tree: What was to be validated.
        where: Names it.
        lines: The line of each key in the file, where it is one.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for each in error.errors():
        found.setdefault(tuple(_key(each, tree)), []).append(each)
    deepest = {key: errors for key, errors in found.items() if not any(_within(other, key) for other in found)}
    return [
        f"{where}{_line(key, lines)}: {'.'.join(map(str, key)) or 'config'}: {_said(errors, kind, key, tree)}"
        for key, errors in deepest.items()
    ]


def _within(inner: Key, outer: Key) -> bool:
    """Whether a key is inside another: then the other's error is of a type that was not meant."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _line(key: Key, lines: Mapping[Key, int]) -> str:
    """The line of a key, or of the section that lacks it."""
    for end in range(len(key), 0, -1):
        if key[:end] in lines:
            return f":{lines[key[:end]]}"
    return ""


def _key(error: ErrorDetails, tree: Any) -> Iterator[str | int]:
    """An error's place without what pydantic adds to it: which of several types was tried."""
    value = tree
    for index, part in enumerate(error["loc"]):
        last = index == len(error["loc"]) - 1
        if _holds(value, part):
            yield part
            value = value[part]
        elif last and error["type"] == "missing":
            yield part


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _said(errors: Sequence[ErrorDetails], kind: type[BaseModel], key: Key, tree: Any) -> str:
    """What is wrong at a key, a clause; of a key that takes several types, what each of them asks for."""
    first = errors[0]
    if first["type"] == "extra_forbidden":
        names = _settings(kind, key[:-1], tree)
        there = f"; there are {', '.join(names)}" if names else ""
        return f"there is no such setting{meant(str(key[-1]), names) or there}"
    if first["type"] == "missing":
        return "is missing; add it"
    if first["type"] == "value_error":
        return str(first.get("ctx", {}).get("error"))
    wanted = list(dict.fromkeys(filter(None, map(_wanted, errors))))
    if not wanted:
        return f"{first['msg'][0].lower()}{first['msg'][1:]}"
    given = repr(first["input"])
    known = [name for each in errors for name in _QUOTED.findall(str(each.get("ctx", {}).get("expected")))]
    shown = given if len(given) < _LONG else f"{given[:_LONG]}…"
    return f"must be {' or '.join(wanted)}, not {shown}{meant(str(first['input']), known)}"


def _wanted(error: ErrorDetails) -> str | None:
    """What would be right, behind "must be"; None where pydantic's own words have to do."""
    what, context = error["type"], error.get("ctx", {})
    if what == "literal_error":
        return str(context["expected"])
    if what in _NUMBERS:
        name, words = _NUMBERS[what]
        return f"{words} {str(context[name]).removesuffix('.0')}"
    if what in ("too_short", "too_long"):
        words = f"at least {context['min_length']}" if what == "too_short" else f"at most {context['max_length']}"
        return f"{words} entries"
    if what == "string_pattern_mismatch":
        pattern = context["pattern"]
        return _NAMES if pattern == NAME else f"of the form {pattern} (a regular expression)"
    family, _, of = what.partition("_")
    return _KINDS.get(family) if of in ("type", "parsing", "from_float") else None


def _settings(kind: type[BaseModel], key: Key, tree: Any) -> Sequence[str]:
    """The settings of the section at a key; none where it is no section of ours."""
    section: type[BaseModel] | None = kind
    named: type[BaseModel] | None = None  # of sections by a user's own names, where the next part of the key is one
    for part in key:
        tree = tree[part]
        if section is None:
            section, named = named, None
            continue
        annotations = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
        section, many = _section(annotations.get(str(part)), tree)
        if many:
            section, named = None, section
    return () if section is None else [field.alias or name for name, field in section.model_fields.items()]


def _section(annotation: Any, value: Any) -> tuple[type[BaseModel] | None, bool]:
    """The class of a section by a field's annotation, and whether the field holds many of it by name."""
    many = getattr(annotation, "__origin__", None) is dict
    waiting = [annotation]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, Operator):
            return _operator(one, value), False
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one, many
        waiting += get_args(one)
    return None, False


def _operator(base: type[Operator], value: Any) -> type[Operator] | None:
    try:
        return load_class(value["kind"], base)
    except (InvalidInputError, KeyError, TypeError):
        return None
