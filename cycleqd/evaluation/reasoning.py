"""The block of reasoning that some models put before their answer: not part of the answer.

without_reasoning("<think>x or y? y.</think>\\nThe answer is y.", ("<think>", "</think>")) == "\\nThe answer is y."
"""

from __future__ import annotations

from typing import Any

from cycleqd.errors import InvalidInputError

THINK = ("<think>", "</think>")


def read_marks(given: Any) -> tuple[str, ...]:
    """The setting `reasoning` of a task: what opens and what closes a block, or nothing. InvalidInputError else."""
    marks = tuple(given) if isinstance(given, (list, tuple)) else (None,)
    if marks and not (len(marks) == 2 and all(isinstance(mark, str) for mark in marks) and marks[1]):
        raise InvalidInputError(
            f"`reasoning` is {given!r}: give what opens and what closes a model's reasoning, as in {list(THINK)}, with"
            ' an empty opening ("") where the chat template has written it, or [] to leave replies as they are.'
        )
    return marks


def without_reasoning(reply: str, marks: tuple[str, ...]) -> str:
    """What follows the block that `reply` begins with, white space aside. All of `reply` when it begins with none, when
    the block is not closed, and when `marks` is empty."""
    if not marks:
        return reply
    opening, closing = marks
    begun = reply.lstrip()
    if not begun.startswith(opening):
        return reply
    _, closed, rest = begun[len(opening) :].partition(closing)
    return rest if closed else reply
