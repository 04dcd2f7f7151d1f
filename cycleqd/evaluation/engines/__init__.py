"""The engines behind one interface (cycleqd/evaluation/engines/engine.py), chosen by name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from cycleqd.evaluation.engines.engine import Engine


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with.

    `dtype` "auto" is the checkpoint's own. `batch_tokens` bounds rows × (longest prompt + new tokens) of one batch.
    `max_context`, in tokens, lowers the model's own limit. `threads` are CPU threads of the arithmetic.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 16384
    threads: int = 2
    max_context: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


def create(kind: Literal["auto", "transformers", "vllm"], settings: EngineSettings) -> Engine:
    """An engine that starts at its first `load`. "auto": vllm where CUDA and vllm are there, otherwise transformers."""
    if kind == "auto":
        kind = "vllm" if _cuda(settings) and importlib.util.find_spec("vllm") else "transformers"
    if kind == "vllm":
        from cycleqd.evaluation.engines.vllm import VllmEngine

        return VllmEngine(settings)
    from cycleqd.evaluation.engines.transformers import TransformersEngine

    return TransformersEngine(settings)


def _cuda(settings: EngineSettings) -> bool:
    import torch

    return settings.device != "cpu" and torch.cuda.is_available()
