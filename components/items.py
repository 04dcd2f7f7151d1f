"""What travels between the tasks of a generation: loop items.

KFP turns integers inside lists into floats and cannot loop over text, so a loop item is a JSON text and a generation's
children are a list of them: '{"child":"g000012-c00","generation":12}'.
"""

from __future__ import annotations

import json
from collections.abc import Sequence


def absolute(generation: int, offset: int) -> int:
    """The generation that a task of a run works on; -1, the next after HEAD, stays -1.

    Args:
        generation: The run's first generation, or -1.
        offset: Position in the run, from 0.
    """
    return generation + offset if generation >= 0 else -1


def for_loop(selected: str) -> list[str]:
    """The children that select_parents planned, as loop items.

    Args:
        selected: JSON list of {"generation": 12, "child": "g000012-c00"}.
    """
    return [json.dumps(item, sort_keys=True, separators=(",", ":")) for item in json.loads(selected)]


def models(items: Sequence[str]) -> str:
    """The JSON list of model ids that loop items name.

    Args:
        items: Loop items, or plain ids ("base", "expert-code"), which are kept.
    """
    return json.dumps([json.loads(item)["child"] if item.startswith("{") else item for item in items])


def generation(items: Sequence[str]) -> int:
    """The generation that loop items belong to; -1, which is seeding, when there are none.

    Args:
        items: Loop items of one generation.
    """
    return int(json.loads(items[0])["generation"]) if items else -1
