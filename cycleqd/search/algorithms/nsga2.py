"""NSGA-II (Deb et al. 2002), the paper's evolutionary baseline: tournament and survival of a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cycleqd.search import pareto
from cycleqd.search.algorithms import Algorithm
from cycleqd.search.operators.selection import Pair
from cycleqd.search.pareto import score_matrix
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.state import State


class NSGA2(Algorithm):
    """A population of `method.population` models; the archives only record."""

    @property
    def label(self) -> str:
        """NSGA-II."""
        return "NSGA-II"

    def pool(self, state: State) -> Sequence[Scored]:
        """The population."""
        return state.population

    def parents(self, state: State, focus: str, rng: np.random.Generator) -> Pair:
        """Two tournaments."""
        return tournament(state.population, state.tasks, rng)

    def population(self, state: State, scored: Sequence[Scored]) -> tuple[Scored, ...]:
        """The best of the old population and the children."""
        return survivors((*state.population, *scored), state.tasks, self.method.population)


def order(population: Sequence[Scored], tasks: Sequence[str]) -> list[tuple[int, float]]:
    """The crowded-comparison key of each model, smaller is better: (rank of its front, minus its crowding distance).

    Args:
        population: Models with their scores.
        tasks: The K search tasks.
    """
    points = score_matrix(population, tasks)
    keys: list[tuple[int, float]] = [(0, 0.0)] * len(population)
    for rank, members in enumerate(pareto.fronts(points)):
        for index, distance in zip(members, pareto.crowding(points[members]), strict=True):
            keys[index] = (rank, -float(distance))
    return keys


def survivors(population: Sequence[Scored], tasks: Sequence[str], size: int) -> tuple[Scored, ...]:
    """The best models by rank, then crowding distance; ties keep the earlier one. The order of the input is kept.

    Args:
        population: Models with their scores.
        tasks: The K search tasks.
        size: How many survive.
    """
    keys = order(population, tasks)
    best = sorted(sorted(range(len(population)), key=keys.__getitem__)[:size])
    return tuple(population[i] for i in best)


def tournament(population: Sequence[Scored], tasks: Sequence[str], rng: np.random.Generator) -> Pair:
    """Two parents, each the better of two models drawn without replacement; a tie goes to the first drawn.

    The second tournament is held among the others, so parents are distinct; one model alone is paired with itself.

    Args:
        population: Models with their scores.
        tasks: The K search tasks.
        rng: The only source of randomness.
    """
    keys = order(population, tasks)
    chosen: list[int] = []
    for _ in range(2):
        others = [i for i in range(len(population)) if i not in chosen] or chosen
        drawn = rng.permutation(others)[:2]
        chosen.append(int(min(drawn, key=lambda i: keys[i])))
    return population[chosen[0]], population[chosen[1]]
