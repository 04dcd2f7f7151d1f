"""A model and its copies are elites of a few archives only: no single model floods them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cycleqd.search.operators.copies import Copies
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.archive import Archive, Ties


class Limit(Copies):
    """Models of equal weights, or of the same parents and ω, are elites of so many archives together.

    A model is offered to those first whose best elite it beats by most.
    """

    needs_origins = True
    kind: Literal["limit"] = "limit"
    archives: int = Field(default=1, ge=1)
    """Archives that a model and its copies may be elites of."""

    def offer(self, candidate: Scored, archives: Sequence[Archive], ties: Ties) -> list[Archive]:
        """Those that hold a copy first, then others while the limit allows, by how far the model leads their best."""
        found = list(archives)
        held = {index for index, archive in enumerate(found) if any(map(candidate.copies, archive.elites.values()))}
        left = self.archives - len(held)
        for index in sorted(range(len(found)), key=lambda index: (index not in held, -archives[index].lead(candidate))):
            if index not in held and left <= 0:
                break
            found[index] = archives[index].offer(candidate, self, ties)
            left -= index not in held and found[index] is not archives[index]
        return found
