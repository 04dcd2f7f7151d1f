"""Crossover: the child's task vector from its parents'."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cycleqd.search.operators import Operator, Parameters


class Crossover(Operator):
    """Combines task vectors linearly, tensor by tensor: θ_base + Σ c_i τ_i. Any form of task vector will do."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.crossover.{}"

    @abstractmethod
    def draw(self, parents: int, rng: np.random.Generator) -> Parameters:
        """What is drawn for a child, as JSON.

        It holds "omega", one weight a parent: a parent's share ω_i / Σω is what family trees show.

        Args:
            parents: Number of parents.
            rng: The only source of randomness.
        """

    @abstractmethod
    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """c_i, one a parent; a function of the arguments alone.

        Args:
            values: The operator's record for the child, with what it drew.
            tensor: Name of the tensor that is combined.
        """
