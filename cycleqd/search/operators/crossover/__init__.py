"""Crossover: the child's task vector from its parents'."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from cycleqd.search.operators import Floats, Needs, Operator, Parameters


class Crossover(Operator):
    """Combines the parents' task vectors into the child's."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.crossover.{}"

    @abstractmethod
    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """What is drawn for a child, as JSON.

        It holds "omega", one weight a parent: a parent's share ω_i / Σω is what family trees show.

        Args:
            parents: Number of parents.
            rng: The only source of randomness.
        """


class SpanCrossover(Crossover):
    """Combines task vectors linearly, tensor by tensor: θ_base + Σ c_i τ_i. Any form of task vector will do."""

    @abstractmethod
    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """c_i, one a parent; a function of the arguments alone.

        Args:
            values: The operator's record for the child, with what it drew.
            tensor: Name of the tensor that is combined.
        """


class PointCrossover(SpanCrossover):
    """A linear combination whose coefficients are the coordinates of a point, so that an algorithm may search them."""

    low: float = Field(default=0.0, allow_inf_nan=False)
    """Where the range of a coefficient begins. A search may leave it where scores lead there."""
    high: float = Field(default=1.0, allow_inf_nan=False)
    """Where it ends."""

    @abstractmethod
    def size(self, parents: int) -> int:
        """How many coordinates a point has.

        Args:
            parents: Number of parents.
        """

    @abstractmethod
    def at(self, point: Sequence[float], parents: int) -> Parameters:
        """What is recorded of a child at a point, in the place of what `draw` gives.

        Args:
            point: Its coordinates.
            parents: Number of parents.
        """

    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """A point of the range, uniformly."""
        return self.at([float(x) for x in rng.uniform(self.low, self.high, self.size(parents))], parents)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}: low must be below high")
        return self


class ElementCrossover(Crossover):
    """Combines task vectors element by element, in pieces or tensor by tensor; needs dense task vectors."""

    needs: ClassVar[Needs] = "elements"

    whole_tensors: ClassVar[bool] = False
    """Whether each tensor must be combined in one piece, as an element's value depends on others of its tensor."""

    @abstractmethod
    def combine(self, values: Parameters, tensor: str, start: int, taus: Floats) -> Floats:
        """The child's task vector on some of a tensor's elements, flat, in row-major order; [n] float32.

        How a tensor is cut must not matter: a function of the record, the name and the positions alone.

        Args:
            values: The operator's record for the child, with what it drew.
            tensor: Name of the tensor.
            start: Position of the first of these elements in the flat tensor; 0 for whole tensors.
            taus: The parents' task vectors, [parents, n] float32, which may be overwritten.
        """


class NormalWeights(Crossover):
    """Draws the parents' weights ω_i ~ N(mu, sigma²), negatives allowed, the same for all tensors."""

    mu: float = Field(default=1.0, gt=0)
    """Mean of the parents' weights ω."""
    sigma: float = Field(default=0.01, ge=0)
    """Standard deviation of ω."""
    min_total: float = Field(default=0.1, ge=0, lt=2)
    """ω are drawn again while their sum is below min_total · mu in size: the child's weights would grow very large."""

    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """ω. As mu > 0 and min_total < 2, at most every second draw of two is refused."""
        while True:
            omega = [float(x) for x in rng.normal(self.mu, self.sigma, parents)]
            if abs(math.fsum(omega)) >= self.min_total * self.mu:
                return {"omega": omega}
