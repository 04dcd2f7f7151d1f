"""Mutation: a random change of the child's task vector after crossover."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cycleqd.search.operators import Doubles, Floats, Needs, Operator, Parameters
from cycleqd.search.randomness import integer_seed


@dataclass(frozen=True)
class Matrix:
    """A matrix of a task vector, however that is kept. directions: its singular values; embedding: or a head."""

    name: str
    directions: int
    embedding: bool


class Mutation(Operator):
    """Changes a child's task vector at random."""

    own_modules: ClassVar[str] = "cycleqd.search.operators.mutation.{}"

    def draw(self, rng: np.random.Generator) -> Parameters:
        """What is drawn for a child, as JSON: a seed of its own, from which tensors' streams follow.

        Args:
            rng: The only source of randomness.
        """
        return {"seed": integer_seed(rng)}


class SpanMutation(Mutation):
    """Scales singular values, matrix by matrix: U Σ Vᵀ becomes U (Σ W) Vᵀ, in any form of task vector.

    Vectors stay as they are.
    """

    def mutates(self, matrix: Matrix) -> bool:
        """Whether a matrix is changed at all.

        Args:
            matrix: The matrix's name and size.
        """
        return True

    @abstractmethod
    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        """W, [directions] float32: w_i scales the i-th largest singular value.

        A function of the record and the matrix's name alone (see `randomness.tensor_stream`).

        Args:
            values: The operator's record for the child, with what it drew.
            matrix: The matrix's name and size.
        """


class ElementMutation(Mutation):
    """Changes elements of every tensor of floats one by one, in pieces; needs dense task vectors."""

    needs: ClassVar[Needs] = "elements"

    @abstractmethod
    def change(self, values: Parameters, tensor: str, start: int, elements: Floats) -> Floats:
        """The new values of some of a tensor's elements, flat, in row-major order; [n] float32.

        How a tensor is cut must not matter: a function of the record, the name and the positions alone.

        Args:
            values: The operator's record for the child, with what it drew.
            tensor: Name of the tensor.
            start: Position of the first of these elements in the flat tensor.
            elements: The child's weights after crossover, [n] float32, which may be overwritten.
        """


class CoreMutation(Mutation):
    """Changes the cores of a model in the span of low-rank experts; it has no dense form."""

    needs: ClassVar[Needs] = "cores"

    @abstractmethod
    def change_core(self, values: Parameters, matrix: str, shape: tuple[int, int], core: Doubles) -> Doubles:
        """The core after the mutation, [a, b].

        A function of the record `values`, the name, the shapes and the core alone.

        Args:
            values: The operator's record for the child.
            matrix: The matrix's name.
            shape: The shape of the dense matrix, [out, in].
            core: The core after crossover, [a, b] float64, which may be overwritten.
        """
