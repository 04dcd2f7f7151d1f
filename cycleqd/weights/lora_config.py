"""What a PEFT adapter's configuration says: the rank and scaling of each module, and which kinds are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cycleqd.errors import InvalidInputError

_Value = TypeVar("_Value", int, float)

MERGE_IT = "merge it into its base with peft's merge_and_unload and use the merged model as the expert"
"""What to do with an adapter that is more than B A: as a full model it can still be an expert."""

_MERGE_OWN = "merge it into the base that it was trained on and use the merged model as the expert"
_CONVERT = (
    "convert it with peft's save_pretrained(…, path_initial_model_for_weight_conversion=…), "
    "which needs the adapter as it was initialised, or " + _MERGE_OWN
)

_REFUSED: dict[str, tuple[str, str]] = {
    "use_dora": ("uses DoRA, which also rescales the base's weights", MERGE_IT),
    "modules_to_save": ("also holds whole trained modules (modules_to_save)", MERGE_IT),
    "trainable_token_indices": ("also trains embeddings of single tokens (trainable_token_indices)", MERGE_IT),
    "target_parameters": ("adapts parameters instead of modules (target_parameters)", MERGE_IT),
    "lora_bias": ("has biases in its LoRA layers (lora_bias)", MERGE_IT),
    "fan_in_fan_out": ("adapts matrices that are stored transposed (fan_in_fan_out)", MERGE_IT),
    "use_bdlora": ("stores block-diagonal matrices (BD-LoRA)", MERGE_IT),
    "kasa_config": ("is relative to a base that KaSA changed", _MERGE_OWN),
    "alora_invocation_tokens": (
        "is an activated LoRA, in force only behind its invocation tokens",
        "train it without alora_invocation_tokens",
    ),
    "use_qalora": ("pools its inputs (QA-LoRA)", "train it without use_qalora"),
    "arrow_config": ("routes between other adapters (Arrow)", "use one of those adapters as the expert"),
    "layer_replication": ("repeats layers of its base (layer_replication)", "train it without layer_replication"),
    "megatron_config": ("is made for Megatron's layers (megatron_config)", "save it for a model of transformers"),
}
"""Settings that, when set, make an adapter more or other than B A on its base: what it does, and what to do."""

_CHANGES_BASE = {
    "pissa": ("PiSSA", _CONVERT),
    "olora": ("OLoRA", _CONVERT),
    "corda": ("CorDA", _CONVERT),
    "lora_ga": ("LoRA-GA", _CONVERT),
    "loftq": ("LoftQ", _MERGE_OWN),
    "kasa": ("KaSA", _MERGE_OWN),
}
"""Beginnings of `init_lora_weights` that change the base's weights; a converted adapter says `true` instead."""


@dataclass(frozen=True)
class LoraConfig:
    """The rank and scaling of an adapter's modules, and its base's name ("" when none is recorded)."""

    base: str
    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """The rank of one module.

        Args:
            module: Its full name, such as "model.layers.0.self_attn.q_proj".
        """
        return _matching(self.ranks, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What B A of one module is multiplied by: α / r, or α / √r for rank-stabilised LoRA.

        Args:
            module: Its full name, such as "model.layers.0.self_attn.q_proj".
        """
        rank = self.rank_of(module)
        return _matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def parse_config(content: Mapping[str, Any], where: str) -> LoraConfig:
    """Read the content of adapter_config.json, with peft's defaults.

    Args:
        content: The file's JSON object.
        where: The adapter's folder, for messages.

    Raises:
        InvalidInputError: The adapter is not B A on its unchanged base, or a setting is not what peft writes.
    """
    for problem in _problems(content):
        raise InvalidInputError(f"The adapter {where} {problem}.")
    try:
        return LoraConfig(
            base=str(content.get("base_model_name_or_path") or ""),
            rank=_positive(content.get("r", 8)),
            alpha=_number(content.get("lora_alpha", 8)),
            rslora=bool(content.get("use_rslora")),
            ranks={_pattern(key): _positive(value) for key, value in (content.get("rank_pattern") or {}).items()},
            alphas={_pattern(key): _number(value) for key, value in (content.get("alpha_pattern") or {}).items()},
        )
    except (ValueError, AttributeError, re.error) as error:
        raise InvalidInputError(
            f"adapter_config.json of {where} has a rank, an alpha or a pattern that peft does not write ({error}); "
            "correct it or save the adapter again."
        ) from error


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What keeps an adapter from being an expert: predicates with what to do."""
    kind = content.get("peft_type")
    if kind != "LORA":
        yield f"is of PEFT's type {kind}, and only LORA can be an expert as it is; {MERGE_IT}"
    if content.get("bias", "none") != "none":
        yield f"also trains its base's biases (bias: {content['bias']}); {MERGE_IT}"
    for key, (what, advice) in _REFUSED.items():
        if content.get(key):
            yield f"{what}; {advice}"
    initialisation = str(content.get("init_lora_weights", True)).lower()
    for start, (name, advice) in _CHANGES_BASE.items():
        if initialisation.startswith(start):
            yield f"is relative to a base that its initialisation changed ({name}); {advice}"


def _matching(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    """The value of the first pattern that matches, as peft chooses it."""
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
    return patterns.get(key, default)


def _pattern(key: str) -> str:
    re.compile(rf"(.*\.)?({key})$")
    return key


def _positive(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{value!r} is no positive whole number")


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{value!r} is no number")
