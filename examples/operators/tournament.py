"""A parent selection of one's own: the best average among a few models that were drawn at random."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from cycleqd.plugins import Pair, Pool, Selection, score_matrix


class Tournament(Selection):
    """Two tournaments of `size` models each; the winner of the first takes no part in the second."""

    size: int = Field(default=2, ge=1)

    def parents(self, pool: Pool, rng: np.random.Generator) -> Pair:
        """Winners by the mean over all tasks; one model alone is paired with itself."""
        averages = score_matrix(pool.models, pool.tasks).mean(axis=1)
        first = self._winner(averages, np.arange(len(averages)), rng)
        others = np.array([i for i in range(len(averages)) if i != first] or [first])
        return pool.models[first], pool.models[self._winner(averages, others, rng)]

    def _winner(self, averages: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> int:
        drawn = rng.permutation(among)[: self.size]
        return int(max(drawn, key=lambda i: averages[i]))
