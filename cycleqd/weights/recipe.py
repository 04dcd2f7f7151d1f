"""The one recipe behind merge, mutate and combine: a linear combination of models, then a mutation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.mutation import (
    MutationSpec,
    Seed,
    draw_w,
    gaussian_noise,
    prepare_decompositions,
    svd_rescale,
    tensor_stream,
)
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

    def prepare(self) -> None:
        """Before threads decompose on the device, one decomposition there, where there will be any."""
        if self._mutation is not None and self._mutation.kind == "svd":
            prepare_decompositions(self._device)

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
        return self._svd([unit.tensor], [merged], [arrays[-1]])[0] if self.whole(unit.tensor) else merged

    def batches(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Matrices of one shape are mutated together on a GPU; on the CPU each has a thread, for the same bytes."""
        alike = (first.shape, first.dtype) == (second.shape, second.dtype) and self.whole(first) and self.whole(second)
        return alike and self._device != "cpu"

    def compute_batch(self, units: Sequence[Unit], arrays: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """`compute` for whole matrices of one shape."""
        dtype = DTYPES[units[0].tensor.dtype]
        merged = [combine_blocks(a[: len(self._models)], self._weights, dtype) for a in arrays]
        return self._svd([unit.tensor for unit in units], merged, [a[-1] for a in arrays])

    def _svd(
        self, tensors: Sequence[TensorInfo], merged: Sequence[torch.Tensor], bases: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        assert self._mutation is not None
        shape = tensors[0].shape
        origin = self._placed(bases, shape)
        tau = self._placed(merged, shape) - origin
        if not tau.any():
            return list(merged)
        w = [draw_w(self._mutation, min(shape), tensor_stream(self._seed, tensor.name)) for tensor in tensors]
        mutated = svd_rescale(tau, self._placed(w, (min(shape),))).add_(origin)
        results = finite(mutated.to(merged[0].dtype).cpu().reshape(-1)).split(len(merged[0]))
        return list(results)

    def _placed(self, arrays: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """In fp32 on the device: one array in its shape, or several as a stack."""
        placed = [array.to(self._device, torch.float32).view(shape) for array in arrays]
        return placed[0] if len(placed) == 1 else torch.stack(placed)
