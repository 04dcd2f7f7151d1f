"""CycleQD (paper section 3.2) and its archive-based variants: the archives take turns, parents are elites.

`method.focus`: the archive t mod K at generation t, from t = 0 (cyclic), every archive in every generation (all), or
always the same one (fixed), which is MAP-Elites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cycleqd.search.algorithms import Algorithm
from cycleqd.search.archive import union
from cycleqd.search.operators.selection import Pair, Pool
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.state import State


class CycleQD(Algorithm):
    """Quality and behaviour change places from one generation to the next."""

    @property
    def label(self) -> str:
        """CycleQD; MAP-Elites with a fixed focus."""
        return "CycleQD" if self.method.focus in ("cyclic", "all") else "MAP-Elites"

    @property
    def searched(self) -> tuple[str, ...]:
        """Quality tasks of the archives that parents are ever selected from: all, or the fixed one."""
        focus, tasks = self.method.focus, self.config.search_tasks
        if isinstance(focus, Mapping):
            return (focus["fixed"],)
        return tasks[:1] if focus == "fixed" else tasks

    @property
    def period(self) -> int:
        """K where archives take turns."""
        return len(self.searched) if self.method.focus == "cyclic" else 1

    def turn(self, generation: int) -> tuple[str, ...]:
        """The next archive in turn, or all that are searched."""
        tasks = self.searched
        return (tasks[generation % len(tasks)],) if self.method.focus == "cyclic" else tasks

    def pool(self, state: State) -> Sequence[Scored]:
        """The elites of the archives that are searched, once each."""
        return union(archive for archive in state.archives if archive.quality in self.searched)

    def parents(self, state: State, focus: str, rng: np.random.Generator) -> Pair:
        """By `method.parents` among the elites of the archive in focus; among all where it has one elite only."""
        archive = next(archive for archive in state.archives if archive.quality == focus)
        alone = len(archive.elites) < 2
        models = self.pool(state) if alone else tuple(archive.elites.values())
        kin = self.method.copies.kin(models, state.tasks)
        return self.method.parents.parents(Pool(models, () if alone else tuple(archive.elites), state.tasks, kin), rng)
