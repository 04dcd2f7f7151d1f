"""Parent selection: which two models of an archive have a child."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cycleqd.search.operators import Operator
from cycleqd.search.records import Scored

Weights = NDArray[np.float64]
Pair = tuple[Scored, Scored]


@dataclass(frozen=True)
class Pool:
    """What parents are selected from.

    models: n of them, at least one. cells: the cell of each in the archive in focus, one bin index a behaviour; empty
    where that archive has too few and all archives' elites are taken. tasks: the K search tasks. kin: [n], ≥ 1, how
    many of the models count as copies of each one, itself included, by the rule for copies.
    """

    models: Sequence[Scored]
    cells: Sequence[tuple[int, ...]]
    tasks: Sequence[str]
    kin: Weights


class Selection(Operator):
    """Selects parents."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.selection.{}"

    @abstractmethod
    def parents(self, pool: Pool, rng: np.random.Generator) -> Pair:
        """Two parents: different ones, unless there is only one model.

        Args:
            pool: What parents are selected from.
            rng: The only source of randomness.
        """


def draw_pair(pool: Pool, weights: Weights, radius: int, rng: np.random.Generator) -> Pair:
    """Two different models in proportion to their weights; a model that is all alone is paired with itself.

    Args:
        pool: n models.
        weights: [n], ≥ 0.
        radius: If > 0, the second one is drawn among the first one's Moore neighbourhood of this radius, or among all
            others where that is empty.
        rng: The only source of randomness.
    """
    first = draw(weights, np.arange(len(pool.models)), rng)
    others = np.array([i for i in range(len(pool.models)) if i != first] or [first])
    if radius and pool.cells:
        here = np.array(pool.cells[first])
        near = [i for i in others if np.abs(np.array(pool.cells[i]) - here).max() <= radius]
        others = np.array(near) if near else others
    return pool.models[first], pool.models[draw(weights, others, rng)]


def draw(weights: Weights, among: NDArray[np.int_], rng: np.random.Generator) -> int:
    """One of some indices, in proportion to its weight; uniformly when they all weigh nothing (α_low = 0).

    Args:
        weights: [n], ≥ 0.
        among: Indices into the weights.
        rng: The only source of randomness.
    """
    mass = weights[among]
    chances = mass / mass.sum() if mass.sum() > 0 else np.full(len(among), 1 / len(among))
    return int(rng.choice(among, p=chances))
