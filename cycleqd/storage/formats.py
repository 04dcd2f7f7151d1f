"""The format of stored JSON: every object holds the number of its format, and reading brings it to the present one.

One number holds for all objects of an evolution. Whoever changes what any of them holds raises FORMAT and appends one
step to _STEPS; nothing else looks at the number. A checkpoint's digest has a form of its own, which never changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.outside import parse_json
from cycleqd.search.records import JSON, canonical
from cycleqd.storage import layout

FORMAT = 4
"""What is written now. cycleqd 0.1 wrote no number."""

Step = Callable[[str, JSON], JSON]
"""(key relative to the evolution, as in layout; value in format n) → the value in format n + 1.

A key that did not exist before gets the value that was in force then. Objects that did not change are returned as they
are. The value of a sealed record comes without its seal, that of a transcript is one of its lines.
"""


def _models_are_dense(key: str, value: JSON) -> JSON:
    """1 → 2: before there were cores, every model was a full checkpoint."""
    if key == layout.CONFIG:
        return {**value, "models": {**value["models"], "weights": "dense"}}
    return value


def _best_is_what_was_kept(key: str, value: JSON) -> JSON:
    """2 → 3: of equal models the first was better, and the best by average was kept only where it was for another
    reason: as an elite, in a population, or as the best on a task.
    """
    if not key.startswith("archives/"):
        return value
    elites = [elite for archive in value["archives"] for elite in archive["elites"]]
    kept = {model["model"]["id"] for model in (*elites, *value["population"])}
    for index in range(len(value["tasks"])):
        top = max(line[3][index] for line in value["history"])
        kept.add(next(line[1] for line in value["history"] if line[3][index] == top))
    lines = [line for line in value["history"] if line[1] in kept]
    _, name, sha256, _ = max(lines, key=lambda line: math.fsum(line[3]) / len(line[3]))
    return {**value, "best": {"id": name, "digest": sha256}, "ties": "first"}


def _nothing_is_tuned_or_taken_off(key: str, value: JSON) -> JSON:
    """3 → 4: no λ of task arithmetic was tuned for comparison, and replies were judged as they are."""
    if key != layout.CONFIG:
        return value
    tasks = {name: {**task, "chat": {"reasoning": []}} for name, task in value["tasks"].items()}
    return {**value, "method": {**value["method"], "baselines": {"task_arithmetic": []}}, "tasks": tasks}


_STEPS: Sequence[Step] = (_models_are_dense, _best_is_what_was_kept, _nothing_is_tuned_or_taken_off)
"""Step i leads from format i + 1 to i + 2."""


def encode(value: JSON) -> bytes:
    """The bytes to store of a JSON object: canonical, with its format.

    Args:
        value: A dict of JSON values.
    """
    return canonical({"format": FORMAT, **value})


def decode(key: str, data: bytes, url: str) -> JSON:
    """A stored JSON object in the present format, without its number.

    Args:
        key: Key of the object, relative to the evolution.
        data: The bytes that are stored.
        url: Names the object in messages.

    Raises:
        IntegrityError: it is not a JSON object.
        InvalidInputError: it is of a format that this version does not read.
    """
    try:
        value = parse_json(data)
    except ValueError as error:
        raise IntegrityError(f"{url} is not JSON ({error}); it was truncated or altered: restore it") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{url} is not a JSON object; it was altered: restore it")
    return upgrade(key, value, url)


def upgrade(key: str, value: JSON, url: str) -> JSON:
    """The value in the present format, without its number.

    Args:
        key: Key of the object, relative to the evolution.
        value: The object as it is stored.
        url: Names the object in messages.

    Raises:
        InvalidInputError: it is of a format that this version does not read.
    """
    if "format" not in value:
        raise InvalidInputError(
            f"{url} has no format number: it was written by cycleqd 0.1; open it with cycleqd 0.1.0"
        )
    number = value["format"]
    if number not in range(1, FORMAT + 1):
        raise InvalidInputError(
            f"{url} has format {number!r}, and this cycleqd reads formats 1 to {FORMAT}; open it with the version that"
            " wrote it, or a newer one"
        )
    value = {name: part for name, part in value.items() if name != "format"}
    for step in _STEPS[number - 1 :]:
        value = step(key, value)
    return value
