"""The softmax aggregate of the archives' best elites: the paper's final model (section 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cycleqd.search.operators.final import Final, Recipe
from cycleqd.search.records import Evaluated, Scores

if TYPE_CHECKING:
    from cycleqd.search.state import State


class Softmax(Final):
    """The aggregate is the final model."""

    makes: ClassVar[Literal["aggregate", "single", "either", "other"]] = "aggregate"
    kind: Literal["softmax"] = "softmax"

    def recipe(self, state: State, single: Evaluated, aggregated: Scores | None) -> Recipe:
        """The aggregate's."""
        return self.aggregate(state)
