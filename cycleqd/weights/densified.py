"""A model in the span of low-rank experts as a full checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cycleqd.weights.basis import Basis
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.crossover import Weighted, weighted
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.span import Core
from cycleqd.weights.stream import Recipe, Unit
from cycleqd.weights.tensors import DTYPES, combine_blocks, rounded


class Densified(Recipe):
    """The recipe of a full checkpoint: θ_base + Q C Pᵀ + Σ c_k (θ_k - θ_base), in fp32, rounded once to its dtype.

    Args:
        base: The base.
        basis: The basis of the core.
        core: The model.
        full: The checkpoints θ_k that it names as `full`.
    """

    def __init__(self, base: Checkpoint, basis: Basis, core: Core, full: Sequence[Checkpoint] = ()) -> None:
        self._base, self._basis, self._core = base, basis, core
        self._dense = {name: weighted(base, full, c.tolist()) for name, c in core.dense.items()}

    def prepare(self) -> None:
        """Nothing."""

    def computes(self, tensor: TensorInfo) -> bool:
        """Matrices of the basis and what the full experts give; all else is the base's."""
        return tensor.name in self._core.matrices or tensor.name in self._dense

    def inputs(self, tensor: TensorInfo) -> Sequence[Checkpoint]:
        """The base, or what is combined in its place."""
        return [model for model, _ in self._weighted(tensor)]

    def pieces(self, tensor: TensorInfo) -> int:
        """Matrices of the basis in one."""
        return int(tensor.name in self._core.matrices)

    def compute(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """The base's elements plus τ's."""
        name, dtype = unit.tensor.name, DTYPES[unit.tensor.dtype]
        weights = [weight for _, weight in self._weighted(unit.tensor)]
        if name not in self._core.matrices:
            return combine_blocks(arrays, weights, dtype)
        origin = arrays[0].float() if len(arrays) == 1 else combine_blocks(arrays, weights, torch.float32)
        q, p = self._basis.read(name)
        total = origin.view(unit.tensor.shape) + (q @ self._core.matrices[name]) @ p.T
        return rounded(total.reshape(-1), dtype)

    def scratch(self, tensor: TensorInfo) -> int:
        """τ, and the sum; with what the full experts give, that, too."""
        return (2 + (tensor.name in self._dense)) * (tensor.name in self._core.matrices)

    def batches(self, first: TensorInfo, second: TensorInfo) -> bool:
        """No: each matrix by itself."""
        return False

    def compute_batch(self, units: Sequence[Unit], arrays: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """One by one."""
        return [self.compute(unit, found) for unit, found in zip(units, arrays, strict=True)]

    def _weighted(self, tensor: TensorInfo) -> Weighted:
        return self._dense.get(tensor.name, [(self._base, 1.0)])
