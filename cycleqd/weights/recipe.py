"""The one recipe behind merge, mutate and combine: a linear combination of models, then a mutation.

This is how operators of the search (cycleqd.search.operators) act on task vectors that are dense and streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.mutation import ElementMutation, Floats, Matrix, Mutation, SpanMutation
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.mutation import prepare_decompositions, svd_rescale
from cycleqd.weights.stream import Recipe, Unit
from cycleqd.weights.tensors import DTYPES, combine_blocks, empty, finite, rounded

Weighted = Sequence[tuple[Checkpoint, float]]
"""Models with their weights, which sum to 1; the first is what differences are taken from."""


class Combination(Recipe):
    """Σ w_i θ_i over models whose weights sum to 1 (the base drops out unless it has a weight), then a mutation.

    weighted: the models with their weights, for the tensor of a name.
    """

    def __init__(
        self,
        base: Checkpoint,
        weighted: Callable[[str], Weighted],
        mutation: Drawn[Mutation] | None = None,
        device: str = "cpu",
    ) -> None:
        self._base = base
        self._weighted = weighted
        self._mutation = mutation
        self._device = device

    def prepare(self) -> None:
        """Before threads decompose on the device, one decomposition there, where there will be any."""
        if any(self.whole(tensor) for tensor in self._base.tensors.values()):
            prepare_decompositions(self._device)

    def computes(self, tensor: TensorInfo) -> bool:
        """Integers and booleans are buffers: copied from the base."""
        return tensor.dtype in FLOATS

    def inputs(self, tensor: TensorInfo) -> Sequence[Checkpoint]:
        """The models with a weight, and the base behind them where the task vector is needed."""
        if not self.computes(tensor):
            return [self._base]
        models = [model for model, _ in self._weighted(tensor.name)]
        return [*models, self._base] if self.whole(tensor) else models

    def whole(self, tensor: TensorInfo) -> bool:
        """Matrices whose singular values are scaled; one-dimensional tensors pass through."""
        if self._mutation is None or not isinstance(self._mutation.operator, SpanMutation):
            return False
        is_matrix = len(tensor.shape) == 2 and self.computes(tensor)
        return is_matrix and self._mutation.operator.mutates(self._matrix(tensor))

    def compute(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine in fp32, round to the storage dtype, mutate the rounded value, round again."""
        merged = self._merged(unit, arrays)
        if self.whole(unit.tensor):
            return self._scaled([unit.tensor], [merged], [arrays[-1]])[0]
        if self._mutation is not None and isinstance(self._mutation.operator, ElementMutation):
            return self._changed(unit, merged)
        return merged

    def _merged(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = [weight for _, weight in self._weighted(unit.tensor.name)]
        return combine_blocks(arrays[: len(weights)], weights, DTYPES[unit.tensor.dtype])

    def batches(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Matrices of one shape are mutated together on a GPU; on the CPU each has a thread, for the same bytes."""
        alike = (first.shape, first.dtype) == (second.shape, second.dtype) and self.whole(first) and self.whole(second)
        return alike and self._device != "cpu"

    def compute_batch(self, units: Sequence[Unit], arrays: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """`compute` for whole matrices of one shape."""
        merged = [self._merged(unit, a) for unit, a in zip(units, arrays, strict=True)]
        return self._scaled([unit.tensor for unit in units], merged, [a[-1] for a in arrays])

    def _matrix(self, tensor: TensorInfo) -> Matrix:
        return Matrix(tensor.name, min(tensor.shape), self._base.is_embedding(tensor.name))

    def _scaled(
        self, tensors: Sequence[TensorInfo], merged: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The base plus the task vectors with their singular values scaled: matrices of one shape."""
        mutation, shape = cast(Drawn[SpanMutation], self._mutation), tensors[0].shape
        origin = self._placed(bases, shape)
        tau = self._placed(merged, shape) - origin
        if not tau.any():
            return list(merged)
        factors = [mutation.operator.factors(mutation.values, self._matrix(tensor)) for tensor in tensors]
        w = self._placed([_numbers(mutation, found, min(shape)) for found in factors], (min(shape),))
        mutated = svd_rescale(tau, w).add_(origin)
        results = finite(mutated.to(merged[0].dtype).cpu().reshape(-1)).split(len(merged[0]))
        return list(results)

    def _changed(self, unit: Unit, merged: torch.Tensor) -> torch.Tensor:
        """The elements of a unit after a mutation that works on them one by one."""
        mutation = cast(Drawn[ElementMutation], self._mutation)
        elements = empty(len(merged), torch.float32).copy_(merged)
        changed = mutation.operator.change(mutation.values, unit.tensor.name, unit.start, elements.numpy())
        return rounded(_numbers(mutation, changed, len(merged)), merged.dtype)

    def _placed(self, arrays: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """In fp32 on the device: one array in its shape, or several as a stack."""
        placed = [array.to(self._device, torch.float32).view(shape) for array in arrays]
        return placed[0] if len(placed) == 1 else torch.stack(placed)


def _numbers(mutation: Drawn[Mutation], found: Floats, count: int) -> torch.Tensor:
    """What a mutation gave, as a tensor. Raises InvalidInputError unless it is `count` float32 numbers in a row."""
    if found.shape != (count,) or found.dtype != np.float32:
        raise InvalidInputError(
            f"mutation '{mutation.operator.kind}' gave an array of shape {found.shape} and type {found.dtype}, where"
            f" ({count},) and float32 are needed; correct it"
        )
    return torch.from_numpy(found)
