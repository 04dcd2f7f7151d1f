"""Lexicase selection (Spector 2012; ε: La Cava et al. 2016): random orders of cases filter a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from cycleqd.search.algorithms import Algorithm
from cycleqd.search.algorithms.nsga2 import survivors
from cycleqd.search.operators.selection import Pair
from cycleqd.search.pareto import Points, score_matrix
from cycleqd.search.records import Scored

if TYPE_CHECKING:
    from cycleqd.search.state import State


class Lexicase(Algorithm):
    """A population of `method.population` models, kept as NSGA-II's is; the archives only record."""

    @property
    def label(self) -> str:
        """Lexicase."""
        return "Lexicase"

    @property
    def needs_verdicts(self) -> bool:
        """Where every sample is a case."""
        return self.method.lexicase_cases == "samples"

    def pool(self, state: State) -> Sequence[Scored]:
        """The population."""
        return state.population

    def parents(self, state: State, focus: str, rng: np.random.Generator) -> Pair:
        """Two lexicase selections."""
        cases = case_matrix(state.population, state.tasks, self.method.lexicase_cases)
        return pair(state.population, cases, rng, self.method.lexicase_epsilon)

    def population(self, state: State, scored: Sequence[Scored]) -> tuple[Scored, ...]:
        """The best of the old population and the children, by front and crowding."""
        return survivors((*state.population, *scored), state.tasks, self.method.population)


def case_matrix(population: Sequence[Scored], tasks: Sequence[str], cases: Literal["scores", "samples"]) -> Points:
    """Values to be maximised, [n, cases]: the K scores, or 1.0 and 0.0 for every sample of every task.

    Args:
        population: n models; with verdicts where samples are the cases.
        tasks: The K search tasks.
        cases: What counts as a case.
    """
    if cases == "scores":
        return score_matrix(population, tasks)
    return np.array([[float(b) for task in tasks for b in (m.verdicts or {})[task]] for m in population])


def pick(cases: Points, rng: np.random.Generator, epsilon: float = 0.0) -> int:
    """One model by lexicase selection: in a random order of cases, only models within epsilon of the best one stay.

    What is left after the last case is drawn from uniformly.

    Args:
        cases: Values to be maximised, [n, cases].
        rng: The only source of randomness.
        epsilon: How far below the best value a model may be.
    """
    left = np.arange(len(cases))
    for case in rng.permutation(cases.shape[1]):
        values = cases[left, case]
        left = left[values >= values.max() - epsilon]
        if len(left) == 1:
            break
    return int(rng.choice(left))


def pair(population: Sequence[Scored], cases: Points, rng: np.random.Generator, epsilon: float = 0.0) -> Pair:
    """Two parents, one lexicase selection each, the second among the others; one model alone is paired with itself.

    Args:
        population: n models.
        cases: Their values, [n, cases].
        rng: The only source of randomness.
        epsilon: How far below the best value a model may be.
    """
    first = pick(cases, rng, epsilon)
    others = [i for i in range(len(population)) if i != first] or [first]
    return population[first], population[others[pick(cases[others], rng, epsilon)]]
