"""The one recipe behind merge, mutate and combine: models are merged, then the result is mutated.

This is how operators of the search (cycleqd.search.operators) act on task vectors that are dense and streamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch

from cycleqd.search.operators import Drawn
from cycleqd.search.operators.mutation import ElementMutation, Matrix, Mutation, SpanMutation
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.crossover import Merging, numbers
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.mutation import prepare_decompositions, svd_rescale
from cycleqd.weights.stream import Recipe, Unit
from cycleqd.weights.tensors import empty, finite, rounded

_SCALING = 4  # fp32 arrays of a matrix' size that scaling its singular values takes


class Combination(Recipe):
    """Models merged, then a mutation of the merged model's task vector."""

    def __init__(
        self,
        base: Checkpoint,
        merging: Merging,
        mutation: Drawn[Mutation] | None = None,
        device: str = "cpu",
    ) -> None:
        self._base = base
        self._merging = merging
        self._mutation = mutation
        self._device = device

    def prepare(self) -> None:
        """Before threads decompose on the device, one decomposition there, where there will be any."""
        if any(self._scales(tensor) for tensor in self._base.tensors.values()):
            prepare_decompositions(self._device)

    def computes(self, tensor: TensorInfo) -> bool:
        """Integers and booleans are buffers: copied from the base."""
        return tensor.dtype in FLOATS

    def inputs(self, tensor: TensorInfo) -> Sequence[Checkpoint]:
        """The models to merge, and the base behind them where task vectors are needed."""
        if not self.computes(tensor):
            return [self._base]
        models = self._merging.parents(tensor.name)
        return [*models, self._base] if self._merging.needs_base or self._scales(tensor) else models

    def pieces(self, tensor: TensorInfo) -> int:
        """Matrices whose singular values are scaled one by one; all tensors in one where merging needs them whole."""
        if not self.computes(tensor):
            return 0
        return 1 if self._merging.whole else self._scaled_matrices(tensor)

    def scratch(self, tensor: TensorInfo) -> int:
        """What merging takes, or then scaling."""
        return max(self._merging.scratch, _SCALING if self._scales(tensor) else 0) if self.computes(tensor) else 0

    def _scaled_matrices(self, tensor: TensorInfo) -> int:
        """How many matrices of a tensor have their singular values scaled; what is no matrix passes through."""
        if self._mutation is None or not isinstance(self._mutation.operator, SpanMutation):
            return 0
        stacked = self._base.stacked(tensor.name) if self.computes(tensor) else 0
        return stacked if stacked and self._mutation.operator.mutates(self._matrix(tensor, 0)) else 0

    def _scales(self, tensor: TensorInfo) -> bool:
        return self._scaled_matrices(tensor) > 0

    def compute(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Merge in fp32, round to the storage dtype, mutate the rounded value, round again."""
        merged = self._merging.merge(unit, arrays)
        if self._scales(unit.tensor):
            scaled = [self._scaled([u], [mine], [base])[0] for u, mine, base in _split(unit, merged, arrays)]
            return scaled[0] if len(scaled) == 1 else torch.cat(scaled)
        if self._mutation is not None and isinstance(self._mutation.operator, ElementMutation):
            return self._changed(unit, merged)
        return merged

    def batches(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Matrices of one shape are mutated together on a GPU; on the CPU each has a thread, for the same bytes."""
        alike = (first.shape, first.dtype) == (second.shape, second.dtype)
        return alike and self._scales(first) and self._scales(second) and self._device != "cpu"

    def compute_batch(self, units: Sequence[Unit], arrays: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """`compute` for whole matrices of one shape."""
        merged = [self._merging.merge(unit, a) for unit, a in zip(units, arrays, strict=True)]
        return self._scaled(units, merged, [a[-1] for a in arrays])

    def _matrix(self, tensor: TensorInfo, index: int) -> Matrix:
        """A matrix of a tensor; those of a stack are named by their number, too, and so have factors of their own."""
        name = tensor.name if len(tensor.shape) == 2 else f"{tensor.name}[{index}]"
        return Matrix(name, min(tensor.shape[-2:]), self._base.is_embedding(tensor.name))

    def _scaled(
        self, units: Sequence[Unit], merged: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The base plus the task vectors with their singular values scaled: units of one matrix each, of one shape."""
        mutation, shape = cast(Drawn[SpanMutation], self._mutation), units[0].tensor.shape[-2:]
        origin = self._placed(bases, shape)
        tau = self._placed(merged, shape) - origin
        if not tau.any():
            return list(merged)
        matrices = [self._matrix(unit.tensor, unit.start // math.prod(shape)) for unit in units]
        factors = [mutation.operator.factors(mutation.values, matrix) for matrix in matrices]
        w = self._placed([numbers(mutation.operator, found, min(shape)) for found in factors], (min(shape),))
        mutated = svd_rescale(tau, w).add_(origin)
        results = finite(mutated.to(merged[0].dtype).cpu().reshape(-1)).split(len(merged[0]))
        return list(results)

    def _changed(self, unit: Unit, merged: torch.Tensor) -> torch.Tensor:
        """The elements of a unit after a mutation that works on them one by one."""
        mutation = cast(Drawn[ElementMutation], self._mutation)
        elements = empty(len(merged), torch.float32).copy_(merged)
        changed = mutation.operator.change(mutation.values, unit.tensor.name, unit.start, elements.numpy())
        return rounded(numbers(mutation.operator, changed, len(merged)), merged.dtype)

    def _placed(self, arrays: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """In fp32 on the device: one array in its shape, or several as a stack."""
        placed = [array.to(self._device, torch.float32).view(shape) for array in arrays]
        return placed[0] if len(placed) == 1 else torch.stack(placed)


def _split(
    unit: Unit, merged: torch.Tensor, arrays: Sequence[torch.Tensor]
) -> Iterator[tuple[Unit, torch.Tensor, torch.Tensor]]:
    """Each matrix of a unit, its merged elements and the base's: a stack is a unit where merging needs it whole."""
    size = math.prod(unit.tensor.shape[-2:])
    starts = range(unit.start, unit.stop, size)
    for start, mine, base in zip(starts, merged.split(size), arrays[-1].split(size), strict=True):
        yield Unit(unit.tensor, start, start + size), mine, base
