"""What a model's config.json says of its arithmetic, in one form, however it is spelled there.

Two configurations agree when they make the same weights compute the same, not when their JSON is equal: `differences`
leaves out what is bookkeeping, training or a limit, and reads all spellings of rotary embeddings and sliding windows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]
"""A config.json's content."""

_BOOKKEEPING = re.compile(
    r"_.*|.*_version|unsloth.*|.*(dropout|_pdrop|layerdrop|drop_path).*|.*_tokens?_(ids?|index)|architectures|auto_map"
    r"|(torch_)?dtype|.*param_dtype|use_cache|use_bfloat16|init.*|.*_init|.*initializer_.*|output_.*|return_dict|torchscript"
    r"|max_position_embeddings|max_seq_len|max_sequence_length|model_max_length|seq_length|n_ctx|gradient_.*|.*_loss.*"
    r"|aux_.*|seq_aux|router_(aux|z)_.*|.*jitter.*|pretraining_tp|id2label|label2id|num_labels|problem_type"
    r"|task_specific_params|.*attn_implementation|use_flash_attn.*|num_logits_to_keep|quantization_config|summary_.*"
    r"|classifier_.*|name_or_path|max_length|min_length|temperature|top_p|do_sample|num_beams.*|repetition_penalty"
    r"|length_penalty|early_stopping|suppress_tokens|begin_suppress_tokens|pruned_heads|tf_legacy_loss"
)
"""Keys that change nothing that is computed for a reply: where a folder came from, training, limits, generation."""

_ARITHMETIC = re.compile(
    r"model_type|.*(hidden|layer|head|size|dim|eps|norm|rope|rotary|window|softcap|multiplier|scal|act|bias|tie_"
    r"|expert|moe|rank|attn|attention|mlp|conv|ssm|state|mamba|inter|vocab|residual|alibi|position|chunk|pattern|topk"
    r"|parallel|swiglu|clip).*"
)
"""Keys of a model class: what a trainer has written under another name is nothing that is computed with."""

_OFF = frozenset({"attn_logit_softcapping", "final_logit_softcapping", "sliding_window"})
"""Keys whose null means "none"; that of others means the same as their absence."""

_LOCAL = ("rope_local_base_freq", "local_rope_theta")
_THETA = ("rope_theta", "rotary_emb_base", "global_rope_theta")
_PART = ("partial_rotary_factor", "rotary_pct")
_STRETCHED = ("dynamic", "yarn", "longrope")  # they take the context's length into the arithmetic


def differences(mine: Settings, theirs: Settings, complete: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Where two models compute differently: each setting with the first model's value and the other's.

    Args:
        mine: One model's configuration.
        theirs: Another one's.
        complete: Whether a model class has filled in both, and holds nothing that it does not know; otherwise a
            setting that only one of them states is taken to be the other's default, too.
    """
    first, second = _arithmetic(mine, complete), _arithmetic(theirs, complete)
    for key in dict.fromkeys([*first, *second]):
        both = key in first and key in second
        if (both or complete) and first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)


def _arithmetic(config: Settings, complete: bool) -> dict[str, Any]:
    nested = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, Mapping)}
    flat = {**nested.pop("text_config", {}), **{key: v for key, v in config.items() if not key.endswith("_config")}}
    found = _rotary(flat)
    _use_window(flat)
    if complete:
        _fill_heads(flat)
    for key, value in flat.items():
        known = complete or (_ARITHMETIC.fullmatch(key) and (value is not None or key in _OFF))
        if known and not _BOOKKEEPING.fullmatch(key):
            found[key] = value
    for part, settings in nested.items():
        found |= {f"{part}.{key}": value for key, value in _arithmetic(settings, complete).items()}
    return found


def _rotary(flat: dict[str, Any]) -> dict[str, Any]:
    """Takes the rotary embedding's settings out of a configuration: all of them in the newest spelling."""
    limit, original = flat.get("max_position_embeddings"), flat.pop("original_max_position_embeddings", None)
    given = [flat.pop(key, None) for key in ("rope_scaling", "rope_parameters")]
    theta, local, part = (_first(flat, keys) for keys in (_THETA, _LOCAL, _PART))
    shared = {"rope_theta": theta, "partial_rotary_factor": part, "original_max_position_embeddings": original}
    if all(value is None for value in (*given, theta, local, part)):
        return {}
    stated = next((value for value in given if isinstance(value, Mapping) and value), {})
    if stated and all(isinstance(value, Mapping) for value in stated.values()):
        layers = {f"rope_parameters.{kind}.": {**shared, **_stated(value)} for kind, value in stated.items()}
    elif local is not None:
        layers = {
            "rope_parameters.full_attention.": {**shared, **_stated(stated)},
            "rope_parameters.sliding_attention.": {**shared, "rope_theta": local},
        }
    else:
        layers = {"": {**shared, **_stated(stated)}}
    return {f"{kind}{key}": value for kind, each in layers.items() for key, value in _one_rope(each, limit).items()}


def _first(flat: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the one of these keys that is there; all are removed."""
    values = [flat.pop(key, None) for key in keys]
    return next((value for value in values if value is not None), None)


def _stated(rope: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rope.items() if value is not None}


def _one_rope(stated: dict[str, Any], limit: Any) -> dict[str, Any]:
    """One rotary embedding, its kind always named; without what its kind does not use."""
    old = stated.pop("type", None)
    kind = stated.pop("rope_type", None) or old or "default"
    kind = {"su": "longrope", "mrope": "default"}.get(kind, kind)
    if kind not in ("llama3", *_STRETCHED):
        stated.pop("original_max_position_embeddings", None)
    elif stated.get("original_max_position_embeddings") is None:
        stated["original_max_position_embeddings"] = limit
    if kind == "default":
        stated = {key: value for key, value in stated.items() if key not in ("factor", "attention_factor")}
    elif kind == "longrope" and limit and "factor" not in stated:
        stated["factor"] = limit / stated["original_max_position_embeddings"]
    if stated.get("partial_rotary_factor") == 1:
        del stated["partial_rotary_factor"]
    return {"rope_type": kind, **{key: value for key, value in stated.items() if value is not None}}


def _use_window(flat: dict[str, Any]) -> None:
    """A sliding window that is switched off, or as long as the context, is none."""
    used = flat.pop("use_sliding_window", None)
    if used is None:
        used = not str(flat.get("model_type")).startswith("qwen")
    if not used:
        flat.pop("max_window_layers", None)
    window, limit = flat.get("sliding_window"), flat.get("max_position_embeddings")
    if "sliding_window" in flat and (not used or not window or (limit and window >= limit)):
        flat["sliding_window"] = None


def _fill_heads(flat: dict[str, Any]) -> None:
    heads, hidden = flat.get("num_attention_heads"), flat.get("hidden_size")
    if isinstance(heads, int) and heads:
        if flat.get("num_key_value_heads") is None:
            flat["num_key_value_heads"] = heads
        if flat.get("head_dim") is None and isinstance(hidden, int):
            flat["head_dim"] = hidden // heads
