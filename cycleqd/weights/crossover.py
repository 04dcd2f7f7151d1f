"""Crossover of task vectors that are dense and streamed: linear combinations of models, or element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
import torch

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Drawn, Floats, Operator
from cycleqd.search.operators.crossover import Crossover, ElementCrossover, SpanCrossover
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.stream import Unit
from cycleqd.weights.tensors import DTYPES, combine_blocks, empty, finite, rounded

Weighted = Sequence[tuple[Checkpoint, float]]
"""Models with their weights, which sum to 1; the first is what differences are taken from."""

_NO_WEIGHT = 1e-9  # below what fp32 can show; weights sum to 1 only up to rounding
_TEMPORARY = 5  # arrays of a unit's size that an element-wise operator may need beside the task vectors


class Merging(Protocol):
    """How the parents' tensors become the child's."""

    needs_base: bool
    """Whether the base is read behind the parents."""

    whole: bool
    """Whether each tensor must be merged in one piece."""

    scratch: int
    """Arrays of a unit's size in fp32 that merging takes beside its inputs and its result."""

    def parents(self, tensor: str) -> list[Checkpoint]:
        """The models whose copy of a tensor is read.

        Args:
            tensor: Name of the tensor.
        """

    def merge(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """The child's elements in the base's storage dtype, flat.

        Args:
            unit: The elements to compute.
            arrays: The parents' elements, and the base's behind them where it is read; flat, in their storage dtypes.

        Raises:
            NotFiniteError: an input or the result holds NaN or Inf.
        """


class Linear(Merging):
    """Σ w_i θ_i over models whose weights sum to 1: the base drops out unless it has a weight itself."""

    needs_base, whole, scratch = False, False, 0

    def __init__(self, weighted: Callable[[str], Weighted]) -> None:
        """`weighted`: the models with their weights, for the tensor of a name."""
        self._weighted = weighted

    def parents(self, tensor: str) -> list[Checkpoint]:
        """The models with a weight."""
        return [model for model, _ in self._weighted(tensor)]

    def merge(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combined in fp32, rounded once."""
        weights = [weight for _, weight in self._weighted(unit.tensor.name)]
        return combine_blocks(arrays[: len(weights)], weights, DTYPES[unit.tensor.dtype])


class Elementwise(Merging):
    """θ_base plus what an element-wise crossover makes of the parents' task vectors, rounded once."""

    needs_base = True

    def __init__(self, parents: Sequence[Checkpoint], crossover: Drawn[ElementCrossover]) -> None:
        self._parents = list(parents)
        self._crossover = crossover
        self.whole = crossover.operator.whole_tensors
        self.scratch = len(parents) + 1 + _TEMPORARY

    def parents(self, tensor: str) -> list[Checkpoint]:
        """All of them."""
        return self._parents

    def merge(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Task vectors are taken, combined and added to the base in fp32."""
        *parents, base = arrays
        origin = empty(len(base), torch.float32).copy_(base)
        taus = empty(len(parents) * len(base), torch.float32).view(len(parents), len(base))
        for tau, parent in zip(taus, parents, strict=True):
            finite(tau.copy_(parent).sub_(origin))  # an operator may lose a NaN
        operator, values = self._crossover.operator, self._crossover.values
        child = operator.combine(values, unit.tensor.name, unit.start, taus.numpy())
        return rounded(origin.add_(numbers(operator, child, len(base))), DTYPES[unit.tensor.dtype])


def merging(base: Checkpoint, parents: Sequence[Checkpoint], crossover: Drawn[Crossover]) -> Merging:
    """What a crossover asks for.

    Args:
        base: θ_base.
        parents: The child's parents.
        crossover: The operator and what it drew for the child.

    Raises:
        InvalidInputError: there is not one finite coefficient a parent.
    """
    if isinstance(crossover.operator, ElementCrossover):
        weighted(base, parents, crossover.values["omega"])
        return Elementwise(parents, cast(Drawn[ElementCrossover], crossover))
    operator = cast(SpanCrossover, crossover.operator)
    models = {name: weighted(base, parents, operator.coefficients(crossover.values, name)) for name in base.tensors}
    return Linear(models.__getitem__)


def weighted(base: Checkpoint, models: Sequence[Checkpoint], coefficients: Sequence[float]) -> Weighted:
    """θ_base + Σ c_i τ_i as models with weights that sum to 1: those with a weight, and the base with what is left.

    Args:
        base: θ_base.
        models: K models.
        coefficients: c_i, one a model.

    Raises:
        InvalidInputError: there is not one finite coefficient a model.
    """
    if len(models) != len(coefficients) or not all(map(math.isfinite, coefficients)):
        raise InvalidInputError(
            f"Combining {len(models)} models needs as many finite coefficients, not {list(coefficients)}."
        )
    rest = 1.0 - math.fsum(coefficients)
    found = [(model, value) for model, value in zip(models, coefficients, strict=True) if value]
    return [(base, rest), *found] if abs(rest) > _NO_WEIGHT else found


def numbers(operator: Operator, found: Floats, count: int) -> torch.Tensor:
    """What an operator computed, as a tensor.

    Args:
        operator: Named in messages.
        found: Must be [count] float32.
        count: How many numbers are needed.

    Raises:
        InvalidInputError: they are of another shape or type.
    """
    if found.shape != (count,) or found.dtype != np.float32:
        raise InvalidInputError(
            f"operator '{operator.kind}' gave an array of shape {found.shape} and type {found.dtype}, where"
            f" ({count},) and float32 are needed; correct it"
        )
    return torch.from_numpy(found)
