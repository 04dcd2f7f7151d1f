"""The weighted mean of the parents' task vectors (paper section 3.3): θ_base + Σ ω_i τ_i / Σ ω_i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Parameters
from cycleqd.search.operators.crossover import Crossover


class Mean(Crossover):
    """ω_i ~ N(mu, sigma²), negatives allowed, the same for all tensors."""

    kind: Literal["mean"] = "mean"
    mu: float = Field(default=1.0, gt=0)
    """Mean of the parents' weights ω."""
    sigma: float = Field(default=0.01, ge=0)
    """Standard deviation of ω."""
    min_total: float = Field(default=0.1, ge=0, lt=2)
    """ω are drawn again while |Σω| is below min_total · mu: the child's weights would grow without bound."""

    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """ω, redrawn while |Σω| < min_total · mu, where the child's weights would grow without bound.

        As mu > 0 and min_total < 2, at most every second draw of two is refused.
        """
        while True:
            omega = [float(x) for x in rng.normal(self.mu, self.sigma, parents)]
            if abs(math.fsum(omega)) >= self.min_total * self.mu:
                return {"omega": omega}

    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """ω_i / Σω. Raises InvalidInputError for ω that are not finite or whose sum is 0."""
        omega = values["omega"]
        total = math.fsum(omega)
        if not math.isfinite(total) or total == 0:
            raise InvalidInputError(f"A mean needs finite ω with a sum other than 0, not {list(omega)}.")
        return [value / total for value in omega]
