"""Whichever of the aggregate and the best single model has the better average on the search split."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cycleqd.search.operators.final import Final, Recipe
from cycleqd.search.records import Evaluated, Scores, average

if TYPE_CHECKING:
    from cycleqd.search.state import State


class Better(Final):
    """Chosen once the aggregate has been scored; a tie goes to the single model."""

    makes: ClassVar[Literal["aggregate", "single", "either", "other"]] = "either"
    kind: Literal["better"] = "better"

    def recipe(self, state: State, single: Evaluated, aggregated: Scores | None) -> Recipe:
        """The aggregate where it is strictly better."""
        assert aggregated is not None, "the better of two needs both scores"
        single_wins = average(aggregated) <= average(single.scores)
        return [(single.model, 1.0)] if single_wins else self.aggregate(state)
