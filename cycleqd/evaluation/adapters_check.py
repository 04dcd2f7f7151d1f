"""Whether an adapter as read here is what peft makes of it: their logits on a few prompts are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cycleqd.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""The largest difference of two logits, relative to the largest logit, in float32."""

_PROMPTS, _TOKENS = 3, 16


def check(base_folder: Path, adapter_folder: Path, ours: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference of logits between peft's adapter and the base plus B A, relative to the largest logit.

    The base is loaded once, in float32, on the CPU: four bytes a parameter.

    Args:
        base_folder: The base, as a Hugging Face folder.
        adapter_folder: The expert, as a PEFT folder.
        ours: (B, A) of the expert by the base's tensor names, [out, r] and [r, in] in float32, the scaling in B.

    Raises:
        InvalidInputError: The difference is above 1e-4, or peft or transformers lack one of the matrices.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    how = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, **how).eval()
    prompts = _prompts(model.config.get_text_config().vocab_size)
    try:
        adapted = PeftModel.from_pretrained(model, adapter_folder)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        line = str(error).strip().partition("\n")[0]
        raise InvalidInputError(f"peft cannot load the adapter {adapter_folder} on {base_folder}: {line}.") from error
    expected = _logits(adapted, prompts)
    model = adapted.unload()
    _add(model, ours, adapter_folder)
    difference = float((_logits(model, prompts) - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise InvalidInputError(
            f"The adapter {adapter_folder} gives other logits with peft than its matrices B A added to {base_folder}: "
            f"they differ by {difference:.1e} of the largest, and {TOLERANCE:.0e} is allowed; merge it with peft's "
            "merge_and_unload and use the merged model as the expert."
        )
    return difference


def _prompts(vocabulary: int) -> torch.Tensor:
    """Fixed token ids, spread over the vocabulary."""
    import torch

    ids = torch.arange(_PROMPTS * _TOKENS, dtype=torch.int64)
    return (ids * 7919 + 13).remainder(vocabulary).view(_PROMPTS, _TOKENS)


def _logits(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=prompts, use_cache=False).logits
    return logits


def _add(model: Any, ours: Mapping[str, tuple[torch.Tensor, torch.Tensor]], adapter: Path) -> None:
    """Add B A to the model's weights."""
    parameters = dict(model.named_parameters())
    for name, (b, a) in ours.items():
        if name not in parameters:
            raise InvalidInputError(
                f"The adapter {adapter} adapts {name}, which transformers' {type(model).__name__} lacks by this name; "
                "merge it into its base and use the merged model as the expert."
            )
        parameters[name].data += b @ a
