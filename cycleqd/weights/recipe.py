"""The one recipe behind merge, mutate and combine: a linear combination of models, then a mutation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.mutation import MutationSpec, Seed, draw_w, gaussian_noise, svd_rescale, tensor_stream
from cycleqd.weights.stream import Unit
from cycleqd.weights.tensors import DTYPES, add_blocks, combine_blocks, finite


class Combination:
    """Σ w_i θ_i over models whose weights sum to 1 (the base drops out unless it has a weight), then a mutation."""

    def __init__(
        self,
        base: Checkpoint,
        weights: Sequence[tuple[Checkpoint, float]],
        mutation: MutationSpec | None = None,
        seed: Seed = 0,
        device: str = "cpu",
    ) -> None:
        self._base = base
        self._models = [model for model, _ in weights]
        self._weights = [weight for _, weight in weights]
        self._mutation = mutation
        self._seed = seed
        self._device = device

    def computes(self, tensor: TensorInfo) -> bool:
        """Integers and booleans are buffers: copied from the base."""
        return tensor.dtype in FLOATS

    def inputs(self, tensor: TensorInfo) -> Sequence[Checkpoint]:
        """The models with a weight, and the base behind them where the task vector is needed."""
        if not self.computes(tensor):
            return [self._base]
        return [*self._models, self._base] if self.whole(tensor) else self._models

    def whole(self, tensor: TensorInfo) -> bool:
        """Matrices under SVD mutation; one-dimensional tensors pass through."""
        spec = self._mutation
        if spec is None or spec.kind != "svd" or len(tensor.shape) != 2 or not self.computes(tensor):
            return False
        return spec.embeddings or not self._base.is_embedding(tensor.name)

    def compute(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine in fp32, round to the storage dtype, mutate the rounded value, round again."""
        dtype = DTYPES[unit.tensor.dtype]
        merged = combine_blocks(arrays[: len(self._models)], self._weights, dtype)
        if self._mutation is None:
            return merged
        if self._mutation.kind == "gaussian":
            noise = gaussian_noise(self._mutation, self._seed, unit.tensor.name, unit.start, unit.stop)
            return add_blocks(noise, merged)
        return self._svd(unit.tensor, merged, arrays[-1]) if self.whole(unit.tensor) else merged

    def _svd(self, tensor: TensorInfo, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        assert self._mutation is not None
        origin = base.to(self._device, torch.float32).view(tensor.shape)
        tau = merged.to(self._device, torch.float32).view(tensor.shape) - origin
        if not tau.any():
            return merged
        w = draw_w(self._mutation, min(tensor.shape), tensor_stream(self._seed, tensor.name))
        mutated = svd_rescale(tau, w.to(self._device)).add_(origin)
        return finite(mutated.to(merged.dtype).cpu().reshape(-1))
