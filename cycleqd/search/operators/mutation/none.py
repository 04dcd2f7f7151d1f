"""No mutation: children are what crossover makes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.mutation import Matrix, SpanMutation


class NoMutation(SpanMutation):
    """Draws nothing and changes nothing."""

    kind: Literal["none"] = "none"

    def draw(self, rng: np.random.Generator) -> Parameters:
        """Nothing."""
        return {}

    def mutates(self, matrix: Matrix) -> bool:
        """No."""
        return False

    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        """Ones."""
        return np.ones(matrix.directions, np.float32)
