"""Searching the coefficients of one merge: every child combines the task vectors of all experts, none descends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cycleqd.search.algorithms import Algorithm
from cycleqd.search.operators.crossover import PointCrossover
from cycleqd.search.records import Plan, Scored, average

if TYPE_CHECKING:
    from cycleqd.search.state import State

Point = list[float]


class ExpertMerge(Algorithm):
    """All experts are every child's parents; the archives only record."""

    def pool(self, state: State) -> Sequence[Scored]:
        """The experts."""
        return state.experts

    def parents(self, state: State, focus: str, rng: np.random.Generator) -> Sequence[Scored]:
        """All experts."""
        return state.experts


class CoefficientSearch(ExpertMerge):
    """Plans points of a `PointCrossover`; what it knows is replayed from the scores of all generations before."""

    rescorable: ClassVar[bool] = False

    @abstractmethod
    def points(self, rounds: Sequence[Sequence[float]]) -> list[Point]:
        """The next generation's points, `method.children` of them: a function of configuration and averages alone.

        Args:
            rounds: Of each generation before, the average scores of its children in the order of their points.
        """

    @property
    def crossover(self) -> PointCrossover:
        """The operator whose points are searched."""
        crossover = self.method.crossover
        assert isinstance(crossover, PointCrossover), "see `problems`"
        return crossover

    @property
    def size(self) -> int:
        """Coordinates of a point."""
        return self.crossover.size(len(self.config.models.experts))

    def problems(self) -> Iterator[str]:
        """Another crossover, or a mutation, which would hide what a point is worth."""
        name, crossover, mutation = self.method.algorithm, self.method.crossover, self.method.mutation
        if not isinstance(crossover, PointCrossover):
            yield (
                f"algorithm '{name}' searches coefficients, which crossover '{crossover.kind}' does not take; set"
                " method.crossover to {kind: combination}"
            )
        if mutation.draw(np.random.default_rng(0)):
            yield (
                f"algorithm '{name}' compares coefficients, beyond which mutation '{mutation.kind}' changes a child;"
                " set method.mutation to {kind: none}"
            )

    def ask(self, state: State, limit: int | None = None) -> Plan:
        """A child a point."""
        by_generation = groupby(state.children, key=lambda line: line.generation)
        rounds = [[average(line.scores) for line in lines] for _, lines in by_generation]
        points = self.points(rounds)[:limit]
        crossings = [(state.experts, self.crossover.at(point, len(state.experts))) for point in points]
        return self.plan(state, [""] * len(points), crossings)
