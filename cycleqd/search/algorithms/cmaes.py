"""CMA-ES (Hansen and Ostermeier 2001; pycma) over merge coefficients, maximising the average score.

The paper's CMA-ES merge, and what mergekit-evolve does. The strategy is rebuilt for each generation: it is asked and
told all generations before, as they are recorded, with random numbers from the configuration's seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cycleqd.errors import UnavailableError
from cycleqd.search.coefficients import CoefficientSearch, Point
from cycleqd.search.operators.crossover import PointCrossover
from cycleqd.search.randomness import stream

if TYPE_CHECKING:
    from cycleqd.search.config import Config


class CMAES(CoefficientSearch):
    """The children of a generation are one sample of the distribution, which starts at the middle of the range."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._strategy: Any = None
        self._told: list[Sequence[float]] = []  # kept from call to call, as replaying takes longer each time
        self._asked: list[Any] = []

    @property
    def label(self) -> str:
        """CMA-ES."""
        return "CMA-ES"

    def problems(self) -> Iterator[str]:
        """Too few points to learn from, or points of one coordinate, which pycma does not take."""
        yield from super().problems()
        count, crossover = self.method.children, self.method.crossover
        if count < 4:
            yield f"algorithm 'cmaes' needs 4 children a generation or more, not {count}: set method.children"
        if isinstance(crossover, PointCrossover) and self.size < 2:
            yield "algorithm 'cmaes' needs two coefficients or more: set method.crossover.own to parents or layers"

    def points(self, rounds: Sequence[Sequence[float]]) -> list[Point]:
        """A sample of the distribution after all rounds; one that a budget cut short teaches nothing."""
        if self._strategy is None or self._told != list(rounds[: len(self._told)]):
            self._begin()
        for averages in rounds[len(self._told) :]:
            if len(averages) == len(self._asked):
                self._strategy.tell(self._asked, [-value for value in averages])
            self._told.append(averages)
            self._asked = self._strategy.ask()
        return [[float(x) for x in point] for point in self._asked]

    def _begin(self) -> None:
        """The strategy before its first generation, and what it asks for there."""
        try:
            import cma
        except ImportError as error:
            raise UnavailableError("algorithm 'cmaes' needs pycma; install 'cycleqd[search]'") from error
        rng = stream(self.config.seed, 0, 0, "coefficients")
        low, high = self.crossover.low, self.crossover.high
        options = {
            "popsize": self.method.children,
            "maxstd": high - low,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": float("nan"),  # numpy's global generator is left alone
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy([(low + high) / 2] * self.size, (high - low) / 4, options)
        self._told, self._asked = [], self._strategy.ask()
