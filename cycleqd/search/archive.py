"""An elitist archive: a grid of behaviours, in each filled cell the model of highest quality (paper section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cycleqd.search.grid import Cell, Grid
from cycleqd.search.operators.copies import Copies
from cycleqd.search.records import JSON, ModelRef, Scored, average

Ties = Literal["average", "first"]
"""Which of two models of equal quality is better: that of the higher average, or the one that came first."""


@dataclass(frozen=True)
class Archive:
    """One elite a cell. Quality is the score on task `quality`, the cell follows from the scores on all other tasks.

    `elites` is ordered by cell, so equal contents have equal iteration orders and equal JSON.
    """

    quality: str
    grid: Grid
    elites: Mapping[Cell, Scored] = field(default_factory=dict)

    def offer(self, candidate: Scored, copies: Copies, ties: Ties = "average") -> Archive:
        """The archive after a model was offered: it enters an empty cell, or one whose elite is strictly worse.

        Of equal quality, the model with the higher average is better; equal in both, the incumbent stays.

        Args:
            candidate: The model and its scores.
            copies: Decides whether a model that would enter may, where it is a copy of an elite.
            ties: "first": of equal quality, the incumbent stays, as it did in formats before 3.
        """
        cell = self.grid.cell(candidate.scores)
        incumbent = self.elites.get(cell)
        if incumbent is not None:
            ahead = candidate.scores[self.quality] - incumbent.scores[self.quality]
            better = average(candidate.scores) > average(incumbent.scores) and ties == "average"
            if ahead < 0 or (ahead == 0 and not better):
                return self
        if not copies.admits(candidate, self.elites.values()):
            return self
        elite = replace(candidate, verdicts=None)  # they are a population's matter
        return replace(self, elites=dict(sorted({**self.elites, cell: elite}.items())))

    def lead(self, model: Scored) -> float:
        """How far a model's quality is above the best elite's; above 0 where there is none.

        Args:
            model: The model and its scores.
        """
        best = max((elite.scores[self.quality] for elite in self.elites.values()), default=0.0)
        return model.scores[self.quality] - best

    @property
    def coverage(self) -> float:
        """Filled cells over all cells."""
        return len(self.elites) / self.grid.cells

    @property
    def qd_score(self) -> float:
        """Sum of the elites' qualities (scores are never negative)."""
        return math.fsum(elite.scores[self.quality] for elite in self.elites.values())

    def to_json(self) -> JSON:
        """JSON as in a snapshot, elites in the order of their cells; without the grid, which the state keeps once."""
        return {
            "quality": self.quality,
            "elites": [{"cell": list(cell), **elite.to_json()} for cell, elite in self.elites.items()],
        }

    @classmethod
    def from_json(cls, value: JSON, grid: Grid) -> Archive:
        """Rebuild an archive on its grid.

        Args:
            value: JSON as `to_json` makes it.
            grid: The archive's grid (recorded once for all archives, see state.State).
        """
        elites = {tuple(elite["cell"]): Scored.from_json(elite) for elite in value["elites"]}
        return cls(value["quality"], grid, dict(sorted(elites.items())))


def union(archives: Iterable[Archive]) -> tuple[Scored, ...]:
    """Every model that is an elite of some archive, once each, in order of archive and cell.

    Args:
        archives: The archives of a snapshot.
    """
    models: dict[ModelRef, Scored] = {}
    for archive in archives:
        for elite in archive.elites.values():
            models.setdefault(elite.model, elite)
    return tuple(models.values())
