"""Mutation: a random change of the child's task vector after crossover."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cycleqd.search.operators import Operator, Parameters
from cycleqd.search.randomness import integer_seed

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """A matrix of a task vector, however that is kept. directions: its singular values; embedding: or a head."""

    name: str
    directions: int
    embedding: bool


class Mutation(Operator):
    """Changes a child's task vector."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.mutation.{}"

    needs: ClassVar[Literal["span", "elements"]]
    """What it works on: singular values of matrices, or elements of dense tensors."""

    def draw(self, rng: np.random.Generator) -> Parameters:
        """What is drawn for a child, as JSON: a seed of its own, from which tensors' streams follow."""
        return {"seed": integer_seed(rng)}


class SpanMutation(Mutation):
    """Scales singular values, matrix by matrix: U Σ Vᵀ becomes U (Σ W) Vᵀ. Vectors stay as they are."""

    needs: ClassVar[Literal["span", "elements"]] = "span"

    def mutates(self, matrix: Matrix) -> bool:
        """Whether the matrix is changed at all."""
        return True

    @abstractmethod
    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        """W, [directions] float32: w_i scales the i-th largest singular value.

        A function of the record `values` and the matrix's name alone (see `randomness.tensor_stream`).
        """


class ElementMutation(Mutation):
    """Changes elements of every tensor of floats one by one, in pieces."""

    needs: ClassVar[Literal["span", "elements"]] = "elements"

    @abstractmethod
    def change(self, values: Parameters, tensor: str, start: int, elements: Floats) -> Floats:
        """The new values of a tensor's elements [start, start + n), flat, in row-major order; float32.

        elements: [n], the child's weights after crossover, which may be overwritten. How a tensor is cut must not
        matter. A function of the record `values`, the name and the positions alone.
        """
