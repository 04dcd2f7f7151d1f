"""Random parents, the ablation of elite sampling: every model of the archive has the same chance."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators.selection import Pair, Pool, Selection, draw_pair


class Random(Selection):
    """Every model has the same chance; copies may share one (see `copies`)."""

    kind: Literal["random"] = "random"
    neighbours: int = Field(default=0, ge=0)
    """Most cells between the first parent and the second on each axis; 0: anywhere in the archive."""

    def parents(self, pool: Pool, rng: np.random.Generator) -> Pair:
        """Two draws."""
        return draw_pair(pool, 1.0 / pool.kin, self.neighbours, rng)
