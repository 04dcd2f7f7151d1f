"""Scores to cells: one axis a task, shared by the archives in which the task is a behaviour (paper section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from cycleqd.errors import InvalidInputError
from cycleqd.search.method import GridConfig
from cycleqd.search.records import JSON, Scored, Scores

Cell = tuple[int, ...]

# Scores are ratios of counts and edges are rounded products: what differs by less than this is the same number.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Axis:
    """`bins` equal, right-closed bins from `low` to `high`; an axis of width 0 has one bin.

    A score on an inner edge belongs to the bin below it (within 1e-9, as edges are rounded); scores outside the range
    fall in the first or last bin.
    """

    low: float
    high: float
    bins: int

    @classmethod
    def make(cls, low: float, high: float, bins: int) -> Axis:
        """An axis whose range is clipped to [0, 1]; width 0 (also after clipping) gives one bin.

        Args:
            low: Lower end, a score.
            high: Upper end, a score.
            bins: Number of bins, at least 1.
        """
        low, high = (min(max(x, 0.0), 1.0) for x in (low, high))
        return cls(low, high, bins if high - low > _ROUNDING else 1)

    @property
    def edges(self) -> tuple[float, ...]:
        """The bins + 1 edges, ascending."""
        return tuple(self.low + (self.high - self.low) * j / self.bins for j in range(self.bins + 1))

    def bin(self, score: float) -> int:
        """Index of the score's bin, 0 … bins - 1.

        Args:
            score: A fraction in [0, 1].
        """
        if self.bins == 1:
            return 0
        steps = (score - self.low) / (self.high - self.low) * self.bins
        return min(max(math.ceil(steps - _ROUNDING) - 1, 0), self.bins - 1)

    def to_json(self) -> JSON:
        """JSON as in a snapshot; the edges follow from it."""
        return {"low": self.low, "high": self.high, "bins": self.bins}

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The inverse of `to_json`.

        Args:
            value: JSON as `to_json` makes it.

        Raises:
            KeyError: a key is missing.
        """
        return cls(low=value["low"], high=value["high"], bins=value["bins"])


@dataclass(frozen=True)
class Grid:
    """The grid of one archive: its behaviour tasks (all but the quality task, in the config's order) and their axes."""

    tasks: tuple[str, ...]
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Bins along each behaviour axis."""
        return tuple(axis.bins for axis in self.axes)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def cell(self, scores: Scores) -> Cell:
        """The cell of a model, one bin index a behaviour task.

        Args:
            scores: The model's scores on all search tasks.
        """
        return tuple(axis.bin(scores[task]) for task, axis in zip(self.tasks, self.axes, strict=True))


def behaviour(axes: Mapping[str, Axis], quality: str) -> Grid:
    """The grid of an archive: all tasks but its quality task are behaviours.

    Args:
        axes: Task → axis, in the config's order.
        quality: Quality task of the archive.
    """
    tasks = tuple(task for task in axes if task != quality)
    return Grid(tasks, tuple(axes[task] for task in tasks))


def is_flat(task: str, experts: Sequence[Scored]) -> bool:
    """Whether every expert scores the same on the task, so that it gives the search no information.

    Args:
        task: Name of the task.
        experts: The experts' scores.
    """
    return len({expert.scores[task] for expert in experts}) == 1


def fix_axes(
    settings: GridConfig, tasks: Sequence[str], experts: Sequence[Scored], specialists: Mapping[str, str]
) -> dict[str, Axis]:
    """One axis a task from the experts' scores; fixed at seeding and recorded with the archives.

    bounds "experts": [0.85 × the weakest expert's score, 1.15 × the strongest's]; "own_expert": the same over the
    task's own experts; explicit: as given. All clipped to [0, 1]. The axis of a flat task has one bin, unless its
    bounds are explicit.

    Args:
        settings: Bins and bounds of the configuration.
        tasks: Search tasks, in the config's order.
        experts: The experts' scores.
        specialists: Model id of an expert → the task that it was fine-tuned for.

    Raises:
        InvalidInputError: a task has no expert to take bounds from.
    """
    axes = {}
    for task in tasks:
        bins = settings.bins if isinstance(settings.bins, int) else settings.bins[task]
        if isinstance(settings.bounds, Mapping):
            axes[task] = Axis.make(*settings.bounds[task], bins)
            continue
        own = settings.bounds == "own_expert"
        seen = [e.scores[task] for e in experts if not own or specialists.get(e.model.id) == task]
        if not seen:
            raise InvalidInputError(f"method.grid.bounds: task '{task}' has no expert to take its bounds from")
        axes[task] = Axis.make(0.85 * min(seen), 1.15 * max(seen), 1 if is_flat(task, experts) else bins)
    return axes
