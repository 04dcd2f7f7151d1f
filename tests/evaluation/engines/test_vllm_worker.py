"""The proof of a swap, on a projection whose weights cannot be read: siblings of a merged model are close."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cycleqd.evaluation.engines.common.vllm_worker import _part, _same_product


class Repacked(nn.Module):
    """As vLLM's projections on a CPU: the weight is stored in another shape, and only multiplies."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.shape, self.params_dtype, self.bias = weight.shape, weight.dtype, bias
        self.weight = nn.Parameter(weight.flatten(), requires_grad=False)
        self.quant_method = SimpleNamespace(apply=self.multiply)

    def multiply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.reshape(self.shape), bias)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_stale_projection_of_a_close_sibling_is_seen(dtype: torch.dtype, biased: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn((192, 96), generator=chance).to(dtype)
    sibling = (weight.float() * (1 + 0.01 * torch.randn((192, 96), generator=chance))).to(dtype)
    bias = torch.randn(192, generator=chance).to(dtype) if biased else None
    assert _same_product(Repacked(weight, bias), weight)
    assert not _same_product(Repacked(sibling, bias), weight)
    if bias is None:  # beside one, a difference of a last digit is rounding
        nudged = weight + 0.003 * weight.float().std().to(dtype)
        assert not _same_product(Repacked(nudged, None), weight)


def test_one_stale_row_of_a_fused_projection_is_seen() -> None:
    weight = torch.randn((64, 512), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    stale = weight.clone()
    stale[7] *= 1.01
    assert not _same_product(Repacked(stale, None), weight)


def divided(kind: str, rank: int, number: int, **more: object) -> nn.Module:
    """A layer of vLLM's as one of several workers has it, without weights."""
    linear = pytest.importorskip("vllm.model_executor.layers.linear")
    module: nn.Module = getattr(linear, kind).__new__(getattr(linear, kind))
    nn.Module.__init__(module)
    for name, value in {"tp_rank": rank, "tp_size": number, **more}.items():
        setattr(module, name, value)
    return module


def test_workers_compare_their_parts_of_a_divided_model() -> None:
    """Rows of merged projections are divided each by itself; keys and values may be held by several workers."""
    whole = torch.arange(24.0).reshape(12, 2)
    parts = [_part(divided("RowParallelLinear", rank, 2), whole.T) for rank in range(2)]
    assert torch.equal(torch.cat(parts, dim=1), whole.T)
    parts = [_part(divided("ColumnParallelLinear", rank, 2, output_size=12), whole) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)
    second = _part(divided("MergedColumnParallelLinear", 1, 2, output_size=12, output_sizes=[8, 4]), whole)
    assert torch.equal(second, whole[[4, 5, 6, 7, 10, 11]])
    heads = {"head_size": 1, "total_num_heads": 8, "total_num_kv_heads": 2, "num_kv_head_replicas": 2}
    third = _part(divided("QKVParallelLinear", 2, 4, **heads), whole)
    assert torch.equal(third, whole[[4, 5, 9, 11]])
    assert _part(divided("ReplicatedLinear", 1, 2), whole) is whole
    assert _part(divided("QKVParallelLinear", 0, 1, **heads), whole) is whole
