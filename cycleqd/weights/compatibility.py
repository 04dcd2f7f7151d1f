"""Whether models can be merged, judged from headers, configs and tokenizers before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.outside import parse_json
from cycleqd.weights.checkpoint import FLOATS, Checkpoint

_MEANING = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "sliding_window", "tie_word_embeddings", "num_experts_per_tok", "max_position_embeddings",
)  # fmt: skip
"""Settings that change what the same weights compute."""

_SHOWN = 3
_ONE_BASE = "only models fine-tuned from one base can be merged."


def problems(base: Checkpoint, others: Sequence[Checkpoint]) -> list[str]:
    """Everything that keeps models from being merged, one sentence each; empty when they fit.

    Args:
        base: The base model.
        others: Models that were fine-tuned from it.
    """
    expected = _vocabulary(base)
    found = [sentence for other in others for sentence in _problems(base, other, expected)]
    return list(dict.fromkeys([*_unsupported(base), *found]))


def refuse_problems(base: Checkpoint, others: Sequence[Checkpoint]) -> None:
    """Refuse models that cannot be merged.

    Args:
        base: The base model.
        others: Models that were fine-tuned from it.

    Raises:
        InvalidInputError: there are problems; it names the first one and the number of the others.
    """
    found = problems(base, others)
    if found:
        more = f" ({len(found) - 1} more problems: `cycleqd validate` lists them.)" if len(found) > 1 else ""
        raise InvalidInputError(found[0] + more)


def _unsupported(model: Checkpoint) -> Iterator[str]:
    for tensor in model.tensors.values():
        if tensor.dtype in ("F64", "C64") or tensor.dtype.startswith("F8"):
            yield f"{tensor.name} of {model.location} is stored as {tensor.dtype}; save it as bf16, fp16 or fp32."


def _problems(base: Checkpoint, other: Checkpoint, vocabulary: dict[str, int] | str | None) -> Iterator[str]:
    pair = f"{other.location} and its base {base.location}"
    if base.config.get("architectures") != other.config.get("architectures"):
        yield (
            f"{pair} differ in architecture: {other.config.get('architectures')} against "
            f"{base.config.get('architectures')}; {_ONE_BASE}"
        )
    for key in _MEANING:
        mine, theirs = base.setting(key), other.setting(key)
        if mine is not None and theirs is not None and mine != theirs:
            yield f"{pair} differ in {key}: {theirs} against {mine}; {_ONE_BASE}"
    yield from _tensor_problems(base, other, pair)
    theirs = _vocabulary(other)
    if vocabulary is not None and theirs is not None and theirs != vocabulary:
        how = _difference(vocabulary, theirs)
        yield f"{pair} have different tokenizers ({how}); fine-tune with the base's tokenizer."


def _tensor_problems(base: Checkpoint, other: Checkpoint, pair: str) -> Iterator[str]:
    missing = [name for name, tensor in base.tensors.items() if name not in other.tensors and tensor.dtype in FLOATS]
    surplus = [name for name, tensor in other.tensors.items() if name not in base.tensors and tensor.dtype in FLOATS]
    if missing:
        yield f"{other.location} lacks {_some(missing)} of its base {base.location}; it is incomplete or another model."
    if surplus:
        yield f"{other.location} has {_some(surplus)} that its base {base.location} lacks; it is another model."
    for name, tensor in base.tensors.items():
        twin = other.tensors.get(name)
        if twin is not None and twin.shape != tensor.shape:
            yield f"{pair} differ in the shape of {name}: {list(twin.shape)} against {list(tensor.shape)}."
        elif twin is not None and (twin.dtype in FLOATS) != (tensor.dtype in FLOATS):
            yield f"{pair} differ in the kind of {name}: {twin.dtype} against {tensor.dtype}."
    yield from _unsupported(other)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _vocabulary(model: Checkpoint) -> dict[str, int] | str | None:
    """Token → id from tokenizer.json, else the digest of a sentencepiece model, else None: nothing to compare."""
    if "tokenizer.json" in model.sizes:
        return _token_ids(parse_json(_read(model, "tokenizer.json")))
    if "tokenizer.model" in model.sizes:
        return hashlib.sha256(_read(model, "tokenizer.model")).hexdigest()
    return None


def _read(model: Checkpoint, name: str) -> bytes:
    return bytes(model.source.read_range(name, 0, model.sizes[name]))


def _token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models list [token, score]
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}}


def _difference(mine: dict[str, int] | str, theirs: dict[str, int] | str) -> str:
    if isinstance(mine, str) or isinstance(theirs, str):
        return "tokenizer.model or its format differs"
    differing = (token for token in [*mine, *theirs] if mine.get(token) != theirs.get(token))
    shown = [f"{token!r} is {theirs.get(token)} against {mine.get(token)}" for token in islice(differing, 1)]
    return f"{len(theirs)} against {len(mine)} tokens, {shown[0]}"
