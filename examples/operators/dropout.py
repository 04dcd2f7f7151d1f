"""A mutation of one's own: drop singular directions of the child's task vector at random, and scale the rest.

DARE (Yu et al. 2024) drops single weights and rescales so that the expected task vector stays; this drops directions,
so that what is left is of lower rank.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from cycleqd.plugins import Floats, Matrix, Parameters, SpanMutation, tensor_stream


class Dropout(SpanMutation):
    """Each direction of each matrix is dropped with probability `rate`, and scaled by 1 / (1 − rate) otherwise."""

    rate: float = Field(default=0.1, ge=0, lt=1)

    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        """0 or 1 / (1 − rate), [directions], from the matrix's own random stream."""
        kept = tensor_stream(values["seed"], matrix.name).uniform(size=matrix.directions) >= self.rate
        return np.asarray(kept / (1 - self.rate), np.float32)
