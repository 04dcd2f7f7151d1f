"""NSGA-II (Deb et al. 2002), the paper's evolutionary baseline: tournament and survival of a population."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cycleqd.search import pareto
from cycleqd.search.records import Scored


def score_matrix(population: Sequence[Scored], tasks: Sequence[str]) -> pareto.Points:
    """Scores as an array [n, K]."""
    return np.array([[model.scores[task] for task in tasks] for model in population], dtype=float).reshape(
        len(population), len(tasks)
    )


def order(population: Sequence[Scored], tasks: Sequence[str]) -> list[tuple[int, float]]:
    """The crowded-comparison key of each model, smaller is better: (rank of its front, minus its crowding distance)."""
    points = score_matrix(population, tasks)
    keys: list[tuple[int, float]] = [(0, 0.0)] * len(population)
    for rank, members in enumerate(pareto.fronts(points)):
        for index, distance in zip(members, pareto.crowding(points[members]), strict=True):
            keys[index] = (rank, -float(distance))
    return keys


def survivors(population: Sequence[Scored], tasks: Sequence[str], size: int) -> tuple[Scored, ...]:
    """The `size` best by rank, then crowding distance; ties keep the earlier one. The order of the input is kept."""
    keys = order(population, tasks)
    best = sorted(sorted(range(len(population)), key=keys.__getitem__)[:size])
    return tuple(population[i] for i in best)


def tournament(population: Sequence[Scored], tasks: Sequence[str], rng: np.random.Generator) -> tuple[Scored, Scored]:
    """Two parents, each the better of two models drawn without replacement; a tie goes to the first drawn.

    The second tournament is held among the others, so parents are distinct; one model alone is paired with itself.
    """
    keys = order(population, tasks)
    chosen: list[int] = []
    for _ in range(2):
        others = [i for i in range(len(population)) if i not in chosen] or chosen
        drawn = rng.permutation(others)[:2]
        chosen.append(int(min(drawn, key=lambda i: keys[i])))
    return population[chosen[0]], population[chosen[1]]
