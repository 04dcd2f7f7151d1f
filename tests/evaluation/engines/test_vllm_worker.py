"""The proof of a swap, on a projection whose weights cannot be read: siblings of a merged model are close."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cycleqd.evaluation.engines.common.vllm_worker import _same_product


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
