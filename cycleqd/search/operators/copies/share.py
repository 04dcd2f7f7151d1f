"""Copies share their chance to be selected (fitness sharing, Goldberg and Richardson 1987)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.selection import Weights
from cycleqd.search.pareto import score_matrix
from cycleqd.search.records import Scored


class Share(Copies):
    """Models of equal weights, or of nearly equal scores, share their chance to be selected."""

    kind: Literal["share"] = "share"
    epsilon: float = Field(default=0.0, ge=0)
    """Models whose scores differ by less than this on every task are copies of each other."""

    def kin(self, models: Sequence[Scored], tasks: Sequence[str]) -> Weights:
        """The size of each model's kind, [n]."""
        scores = score_matrix(models, tasks)
        close = np.abs(scores[:, None] - scores[None, :]).max(axis=2) < self.epsilon
        names = np.array([model.model.digest for model in models])
        return np.asarray((close | (names[:, None] == names[None, :])).sum(axis=1, dtype=float))
