"""Gaussian noise on all parameters: the paper's ablation of SVD mutation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Parameters
from cycleqd.search.operators.mutation import ElementMutation, Floats
from cycleqd.search.randomness import tensor_stream

_CHUNK = 1 << 20  # elements that share a stream, so that noise does not depend on how a tensor is cut


class Gaussian(ElementMutation):
    """N(0, sigma²) on every parameter, vectors included."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(default=0.0003, ge=0)
    """Standard deviation of the noise."""

    def change(self, values: Parameters, tensor: str, start: int, elements: Floats) -> Floats:
        """The elements plus noise, in float32."""
        for chunk in range(start // _CHUNK, -(-(start + len(elements)) // _CHUNK)):
            first, last = max(start, chunk * _CHUNK), min(start + len(elements), (chunk + 1) * _CHUNK)
            stream = tensor_stream(values["seed"], tensor, chunk)
            noise = stream.standard_normal(last - chunk * _CHUNK, dtype=np.float32)
            noise *= np.float32(self.sigma)
            elements[first - start : last - start] += noise[first - chunk * _CHUNK :]
        return elements
