"""Gaussian noise in the span of low-rank experts: what the paper's ablation of SVD mutation becomes on cores.

Noise on all parameters, as `gaussian` adds it, leaves the span. This adds it to the core instead, so that a child moves
along the experts' own directions only: another operator, of another name.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Doubles, Parameters
from cycleqd.search.operators.mutation import CoreMutation
from cycleqd.search.randomness import tensor_stream


class SpanGaussian(CoreMutation):
    """N(0, s²) on every number of a core."""

    kind: Literal["span_gaussian"] = "span_gaussian"
    """The operator's name."""
    sigma: float = Field(default=0.0003, ge=0)
    """Standard deviation of the noise."""
    scale: Literal["dense", "core"] = "dense"
    """`dense`: a core's noise has the norm that `sigma` on the whole matrix would have; `core`: s is `sigma` itself."""

    def change_core(self, values: Parameters, matrix: str, shape: tuple[int, int], core: Doubles) -> Doubles:
        """The core plus noise; its expected squared norm is s² a b, with s² = σ² out · in / (a b) at scale `dense`."""
        noise = tensor_stream(values["seed"], matrix).standard_normal(core.shape)
        factor = math.sqrt(math.prod(shape) / core.size) if self.scale == "dense" else 1.0
        changed: Doubles = core + np.float64(self.sigma * factor) * noise
        return changed
