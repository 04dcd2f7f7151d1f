"""The final model's rule: what is made of the archives when the search is over."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cycleqd.search.operators import Operator
from cycleqd.search.records import Evaluated, ModelRef, Scores

if TYPE_CHECKING:
    from cycleqd.search.state import State

Recipe = list[tuple[ModelRef, float]]
"""Models and coefficients β of θ_base + Σ β τ; one model with β = 1 is that model."""


class Final(Operator):
    """Chooses the final model. The aggregate is built and scored beside it, unless it is the final model."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.final.{}"

    makes: ClassVar[Literal["aggregate", "single", "either", "other"]] = "other"
    """The aggregate, the best single model, either of them by the aggregate's scores, or another combination."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the softmax of the elites' qualities, the aggregate's coefficients; low: the best one counts most."""

    @abstractmethod
    def recipe(self, state: State, single: Evaluated, aggregated: Scores | None) -> Recipe:
        """What the final model is made of, of models that the state keeps (see `state.alive`).

        Args:
            state: The last snapshot.
            single: The living model with the best average.
            aggregated: The aggregate's scores on the search split, where `makes` is "either"; None otherwise.
        """

    def aggregate(self, state: State) -> Recipe:
        """The aggregate (paper section 3.4): the K best elites, β = softmax of quality over temperature; Σ β = 1.

        A model that is best in two archives counts twice, its two shares added.

        Args:
            state: The last snapshot.
        """
        bests = state.bests
        top = max(line.scores[task] for task, line in bests.items())
        weights = {task: math.exp((line.scores[task] - top) / self.temperature) for task, line in bests.items()}
        total = math.fsum(weights.values())
        found: dict[ModelRef, float] = {}
        for task, line in bests.items():
            found[line.model] = found.get(line.model, 0.0) + weights[task] / total
        return list(found.items())
