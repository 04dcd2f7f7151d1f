"""An archive holds a model's weights once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from cycleqd.search.operators.copies import Copies
from cycleqd.search.records import Scored


class Forbid(Copies):
    """Refuses a model whose weights' digest is already an elite of the archive."""

    kind: Literal["forbid"] = "forbid"

    def admits(self, candidate: Scored, elites: Iterable[Scored]) -> bool:
        """No other elite has its digest."""
        return all(elite.model.digest != candidate.model.digest for elite in elites)
