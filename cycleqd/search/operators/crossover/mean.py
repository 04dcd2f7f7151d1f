"""The weighted mean of the parents' task vectors (paper section 3.3): θ_base + Σ ω_i τ_i / Σ ω_i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Parameters
from cycleqd.search.operators.crossover import NormalWeights, SpanCrossover


class Mean(NormalWeights, SpanCrossover):
    """ω_i ~ N(mu, sigma²), negatives allowed, the same for all tensors."""

    kind: Literal["mean"] = "mean"

    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """ω_i / Σω. Raises InvalidInputError for ω that are not finite or whose sum is 0."""
        omega = values["omega"]
        total = math.fsum(omega)
        if not math.isfinite(total) or total == 0:
            raise InvalidInputError(f"A mean needs finite ω with a sum other than 0, not {list(omega)}.")
        return [value / total for value in omega]
