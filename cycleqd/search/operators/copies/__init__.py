"""The rule for copies: what becomes of models that are the same as an elite, or nearly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cycleqd.search.operators import Operator
from cycleqd.search.operators.selection import Weights
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.archive import Archive, Ties


class Copies(Operator):
    """Admits every model, and counts none as a copy; a rule overrides either."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.copies.{}"

    needs_origins: ClassVar[bool] = False
    """Whether models are told by their parents and ω, too (see `Scored.origin`); these are then stored."""

    def admits(self, candidate: Scored, elites: Iterable[Scored]) -> bool:
        """Whether a model that would win a cell of an archive may enter it.

        Args:
            candidate: The model and its scores.
            elites: The archive's elites.
        """
        return True

    def offer(self, candidate: Scored, archives: Sequence[Archive], ties: Ties) -> list[Archive]:
        """All K archives after a model was offered to them.

        Args:
            candidate: The model and its scores.
            archives: As they are before.
            ties: Which of two models of equal quality is better.
        """
        return [archive.offer(candidate, self, ties) for archive in archives]

    def kin(self, models: Sequence[Scored], tasks: Sequence[str]) -> Weights:
        """How many of the models are of each one's kind, itself included, [n] ≥ 1: selection divides by it.

        Args:
            models: n models with their scores.
            tasks: The K search tasks.
        """
        return np.ones(len(models))
