"""Whose turn it is: the archives that a generation optimises (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Focus = Literal["cyclic", "all", "fixed"] | Mapping[Literal["fixed"], str]


def searched(focus: Focus, tasks: Sequence[str]) -> tuple[str, ...]:
    """Quality tasks of the archives that the search ever selects parents from: all, or the fixed one (MAP-Elites)."""
    if isinstance(focus, Mapping):
        return (focus["fixed"],)
    return tuple(tasks[:1]) if focus == "fixed" else tuple(tasks)


def turn(focus: Focus, tasks: Sequence[str], generation: int) -> tuple[str, ...]:
    """Quality tasks of the archives in focus in a generation, in archive order.

    Cyclic: archive t mod K at generation t, from t = 0. Fixed: always the same one. All: every archive.
    """
    archives = searched(focus, tasks)
    return (archives[generation % len(archives)],) if focus == "cyclic" else archives
