"""Lexicase selection (Spector 2012; ε: La Cava et al. 2016): random orders of cases filter a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cycleqd.errors import InvalidInputError
from cycleqd.nsga2 import score_matrix
from cycleqd.pareto import Points
from cycleqd.records import Scored


def case_matrix(population: Sequence[Scored], tasks: Sequence[str], cases: Literal["scores", "samples"]) -> Points:
    """Values to be maximised, [n, cases]: the K scores, or 1.0 and 0.0 for every sample of every task.

    Raises InvalidInputError when verdicts are asked for and a model has none.
    """
    if cases == "scores":
        return score_matrix(population, tasks)
    rows = []
    for model in population:
        if model.verdicts is None:
            raise InvalidInputError(f"model '{model.model.id}' has no verdicts; lexicase_cases: samples needs them")
        rows.append([float(bit) for task in tasks for bit in model.verdicts[task]])
    return np.array(rows)


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
