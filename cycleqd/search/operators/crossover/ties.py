"""TIES (Yadav et al. 2023): small elements are trimmed, parents agree on signs, and those that agree are averaged."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.crossover import ElementCrossover, NormalWeights


class Ties(NormalWeights, ElementCrossover):
    """An element's sign is that of Σ ω_i τ_i over the trimmed τ_i; its value the mean of the ω_i τ_i of that sign.

    The mean is weighted, Σ ω_i τ_i / Σ |ω_i| over the parents whose ω_i τ_i has the elected sign.
    """

    whole_tensors: ClassVar[bool] = True

    kind: Literal["ties"] = "ties"
    density: float = Field(default=0.5, gt=0, le=1)
    """Share of a tensor's elements that each parent keeps: the largest; as large ones as the last are kept, too."""

    def combine(self, values: Parameters, tensor: str, start: int, taus: Floats) -> Floats:
        """Trim, elect signs, and average what agrees."""
        for tau, weight in zip(taus, values["omega"], strict=True):
            self._trim(tau)
            tau *= np.float32(weight)
        elected = np.sign(taus.sum(axis=0))
        total: Floats = np.zeros_like(elected)
        weights = np.zeros_like(elected)
        for tau, weight in zip(taus, values["omega"], strict=True):
            agrees = (np.sign(tau) == elected) & (tau != 0)
            np.add(total, tau, out=total, where=agrees)
            np.add(weights, np.float32(abs(weight)), out=weights, where=agrees)
        np.divide(total, weights, out=total, where=weights > 0)
        return total

    def _trim(self, tau: Floats) -> None:
        """Set all but the largest elements to 0."""
        kept = max(round(self.density * len(tau)), 1)
        if kept < len(tau):
            sizes = np.abs(tau)
            sizes.partition(len(tau) - kept)
            tau[np.abs(tau) < sizes[len(tau) - kept]] = 0
