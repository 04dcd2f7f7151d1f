"""A model and its copies are elites of a few archives only: no single model floods them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cycleqd.search.operators.copies import Copies
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.archive import Archive


class Limit(Copies):
    """Models of equal weights, or of the same parents and ω, are elites of so many archives together.

    A model enters those first whose best elite it beats by most.
    """

    needs_origins = True
    kind: Literal["limit"] = "limit"
    archives: int = Field(default=1, ge=1)
    """Archives that a model and its copies may be elites of."""

    def entered(self, candidate: Scored, archives: Sequence[Archive]) -> Sequence[int]:
        """By how far the model is ahead of each archive's best; without those that others' copies have used up."""
        held = {index for index, archive in enumerate(archives) if any(map(candidate.copies, archive.elites.values()))}
        order = sorted(range(len(archives)), key=lambda index: (index not in held, -archives[index].lead(candidate)))
        return order[: max(self.archives, len(held))]
