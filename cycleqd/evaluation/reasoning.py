"""The block of reasoning that some models put before their answer: not part of the answer.

without_reasoning("<think>x or y? y.</think>\\nThe answer is y.", ("<think>", "</think>")) == "\\nThe answer is y."
"""

from __future__ import annotations

from typing import Any

from cycleqd.errors import InvalidInputError

THINK = ("<think>", "</think>")


def read_marks(setting: Any) -> tuple[str, ...]:
    """The setting `reasoning` of a task, checked.

    Args:
        setting: A list of what opens and what closes a block of reasoning, or an empty one.

    Raises:
        InvalidInputError: It is something else.
    """
    marks = tuple(setting) if isinstance(setting, (list, tuple)) else (None,)
    if marks and not (len(marks) == 2 and all(isinstance(mark, str) for mark in marks) and marks[1]):
        raise InvalidInputError(
            f"`reasoning` is {setting!r}: give what opens and what closes a model's reasoning, as in {list(THINK)},"
            ' with an empty opening ("") where the chat template has written it, or [] to leave replies as they are.'
        )
    return marks


def without_reasoning(reply: str, marks: tuple[str, ...]) -> str:
    """What follows the block of reasoning that a reply begins with; all of the reply when it begins with none.

    Args:
        reply: A model's reply; white space may come before the block. A block that is not closed is none.
        marks: What opens and what closes a block; empty: replies have none.
    """
    if not marks:
        return reply
    opening, closing = marks
    begun = reply.lstrip()
    if not begun.startswith(opening):
        return reply
    _, closed, rest = begun[len(opening) :].partition(closing)
    return rest if closed else reply
