"""The single model with the best average on the search split."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cycleqd.search.operators.final import Final, Recipe
from cycleqd.search.records import Evaluated, Scores

if TYPE_CHECKING:
    from cycleqd.search.state import State


class Best(Final):
    """One model, as it is."""

    makes: ClassVar[Literal["aggregate", "single", "either", "other"]] = "single"
    kind: Literal["best"] = "best"

    def recipe(self, state: State, single: Evaluated, aggregated: Scores | None) -> Recipe:
        """That model."""
        return [(single.model, 1.0)]
