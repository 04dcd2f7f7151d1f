"""Random search: every child combines the task vectors of all experts, as the crossover draws it."""

from __future__ import annotations

from cycleqd.search.coefficients import ExpertMerge


class RandomSearch(ExpertMerge):
    """No child learns from another."""

    @property
    def label(self) -> str:
        """Random search."""
        return "Random search"
