"""Mixing coefficients of the task-vector crossover (paper section 3.3): θ_base + Σ ω_i τ_i / Σ ω_i."""

from __future__ import annotations

import numpy as np

from cycleqd.search.config import Crossover


def draw_omega(settings: Crossover, rng: np.random.Generator) -> tuple[float, float]:
    """ω of two parents, each ~ N(mu, sigma²), negatives allowed.

    Redrawn while |ω1 + ω2| < min_total · mu, where the child's weights would grow without bound. As mu > 0 and
    min_total < 2 (the config's limits), at most every second draw is refused.
    """
    while True:
        first, second = (float(x) for x in rng.normal(settings.mu, settings.sigma, 2))
        if abs(first + second) >= settings.min_total * settings.mu:
            return first, second
