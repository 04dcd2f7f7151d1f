"""Lexicase selection (Spector 2012; ε: La Cava et al. 2016): random orders of cases filter a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cycleqd.search.nsga2 import score_matrix
from cycleqd.search.pareto import Points
from cycleqd.search.records import Scored


def case_matrix(population: Sequence[Scored], tasks: Sequence[str], cases: Literal["scores", "samples"]) -> Points:
    """Values to be maximised, [n, cases]: the K scores, or 1.0 and 0.0 for every sample of every task."""
    if cases == "scores":
        return score_matrix(population, tasks)
    return np.array([[float(b) for task in tasks for b in (m.verdicts or {})[task]] for m in population])


def pick(cases: Points, rng: np.random.Generator, epsilon: float = 0.0) -> int:
    """One row of `cases` [n, c]: in a random order of cases, only rows within epsilon of the best one stay.

    What is left after the last case is drawn from uniformly.
    """
    left = np.arange(len(cases))
    for case in rng.permutation(cases.shape[1]):
        values = cases[left, case]
        left = left[values >= values.max() - epsilon]
        if len(left) == 1:
            break
    return int(rng.choice(left))


def parents(
    population: Sequence[Scored], cases: Points, rng: np.random.Generator, epsilon: float = 0.0
) -> tuple[Scored, Scored]:
    """Two parents, one lexicase selection each, the second among the others; one model alone is paired with itself."""
    first = pick(cases, rng, epsilon)
    others = [i for i in range(len(population)) if i != first] or [first]
    return population[first], population[others[pick(cases[others], rng, epsilon)]]
