"""DARE (Yu et al. 2024): elements of each task vector are dropped at random, the others rescaled, then their mean."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.crossover import ElementCrossover, NormalWeights
from cycleqd.search.randomness import chunks, integer_seed, tensor_stream


class Dare(NormalWeights, ElementCrossover):
    """θ_base + Σ ω_i (m_i ⊙ τ_i / density) / Σ ω_i, with masks m_i of 1 (probability `density`) and 0."""

    kind: Literal["dare"] = "dare"
    density: float = Field(default=0.5, gt=0, le=1)
    """Probability that an element of a parent's task vector is kept."""

    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """ω, and a seed from which the masks of all tensors follow."""
        return {**super().draw(parents, rng), "seed": integer_seed(rng)}

    def combine(self, values: Parameters, tensor: str, start: int, taus: Floats) -> Floats:
        """The weighted mean of what is kept; each parent's mask is drawn from a stream of its own."""
        omega = np.array(values["omega"])
        weights = (omega / omega.sum() / self.density).astype(np.float32)
        for parent, tau in enumerate(taus):
            for chunk, within, mine in chunks(start, len(tau)):
                drawn = tensor_stream(values["seed"], tensor, parent, chunk).random(within.stop, dtype=np.float32)
                tau[mine][drawn[within] >= self.density] = 0
            tau *= weights[parent]
        return np.asarray(taus.sum(axis=0))
