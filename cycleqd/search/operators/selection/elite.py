"""Elite sampling (paper section 3.2): parents that are good at every task are drawn more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from cycleqd.search.operators.selection import Pair, Pool, Selection, Weights, draw_pair
from cycleqd.search.pareto import score_matrix
from cycleqd.search.records import Scored


class Elite(Selection):
    """P_j ∝ γ_j / kin_j, with γ_j = Π_k (α_low + norm(f_jk)·(α_high − α_low)) over all K tasks."""

    kind: Literal["elite"] = "elite"
    alpha_low: float = Field(default=0.5, ge=0)
    """Factor of a task on which a model scores lowest of all."""
    alpha_high: float = Field(default=0.8, gt=0)
    """Factor of a task on which it scores highest of all."""
    neighbours: int = Field(default=0, ge=0)
    """Most cells between the first parent and the second on each axis; 0: anywhere in the archive."""

    @model_validator(mode="after")
    def _ordered(self) -> Elite:
        if self.alpha_low > self.alpha_high:
            raise ValueError(f"alpha_low {self.alpha_low} exceeds alpha_high {self.alpha_high}: swap them")
        return self

    def parents(self, pool: Pool, rng: np.random.Generator) -> Pair:
        """Two draws by γ."""
        return draw_pair(pool, self.gamma(pool.models, pool.tasks) / pool.kin, self.neighbours, rng)

    def gamma(self, models: Sequence[Scored], tasks: Sequence[str]) -> Weights:
        """γ of each model, [n]. norm is min-max over these models, in [0, 1].

        Where all score the same on a task, its factor is α_high for every one.

        Args:
            models: n models with their scores.
            tasks: The K search tasks.
        """
        scores = score_matrix(models, tasks)
        low, span = scores.min(axis=0), np.ptp(scores, axis=0)
        norm = np.where(span > 0, (scores - low) / np.where(span > 0, span, 1.0), 1.0)
        factors = self.alpha_low + norm * (self.alpha_high - self.alpha_low)
        return np.asarray(factors.prod(axis=1))
