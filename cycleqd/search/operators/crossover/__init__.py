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
        """What is drawn for a child of so many parents, as JSON.

        It holds "omega", one weight a parent: a parent's share ω_i / Σω is what family trees show.
        """

    @abstractmethod
    def coefficients(self, values: Parameters, tensor: str) -> Sequence[float]:
        """c_i, one a parent, for the tensor of this name; a function of the record `values` and the name alone."""
