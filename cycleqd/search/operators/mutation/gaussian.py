"""Gaussian noise on all parameters: the paper's ablation of SVD mutation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.mutation import ElementMutation
from cycleqd.search.randomness import chunks, tensor_stream


class Gaussian(ElementMutation):
    """N(0, sigma²) on every parameter, vectors included."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(default=0.0003, ge=0)
    """Standard deviation of the noise."""

    def change(self, values: Parameters, tensor: str, start: int, elements: Floats) -> Floats:
        """The elements plus noise, in float32."""
        for chunk, within, mine in chunks(start, len(elements)):
            noise = tensor_stream(values["seed"], tensor, chunk).standard_normal(within.stop, dtype=np.float32)
            noise *= np.float32(self.sigma)
            elements[mine] += noise[within]
        return elements
