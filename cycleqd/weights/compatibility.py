"""Whether models can be merged, judged from headers, configs and tokenizers before anything is written.

Adapters are judged by the tokenizers that trainers save beside them, like full models; one without any has the base's.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.lora import LoraAdapter
from cycleqd.weights.settings import Settings, differences
from cycleqd.weights.tokenizer import GENERATION, Tokenizer

Model = Checkpoint | LoraAdapter

_SHOWN = 3
_ONE_BASE = "only models fine-tuned from one base can be merged."


def problems(base: Checkpoint, others: Sequence[Model]) -> list[str]:
    """Everything that keeps models from being merged, one sentence each; empty when they fit.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.
    """
    expected = Tokenizer(base.source)
    found = [sentence for other in others for sentence in _problems(base, other, expected)]
    return list(dict.fromkeys([*_unsupported(base), *found]))


def default_problems(base: Checkpoint, others: Sequence[Model], filled: Mapping[str, Settings]) -> list[str]:
    """Where models compute differently once their class has filled in what their configurations leave out.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.
        filled: By location, the configurations as the model class reads them, and nothing that it does not declare.
    """
    pairs = [(other, filled.get(base.location), filled.get(other.location)) for other in others]
    return [
        sentence
        for other, mine, theirs in pairs
        if mine is not None and theirs is not None
        for sentence in _unlike(base, other, differences(mine, theirs, complete=True))
    ]


def refuse_problems(base: Checkpoint, others: Sequence[Model]) -> None:
    """Refuse models that cannot be merged.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.

    Raises:
        InvalidInputError: there are problems; it names the first one and the number of the others.
    """
    found = problems(base, others)
    if found:
        more = f" ({len(found) - 1} more problems: `cycleqd validate` lists them.)" if len(found) > 1 else ""
        raise InvalidInputError(found[0] + more)


def prompt_problems(base: Checkpoint, others: Sequence[Model]) -> list[str]:
    """Models that no prompt can be made for, one sentence each; adapters are prompted as the base is.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.
    """
    models = [base, *(other for other in others if isinstance(other, Checkpoint))]
    return [
        f"{model.location} has no chat template, which prompts are made with; put that into its folder"
        " (chat_template.jinja) which the experts were trained with."
        for model in models
        if Tokenizer(model.source).template is None
    ]


def warnings(base: Checkpoint, others: Sequence[Model]) -> list[str]:
    """What is lost with models that can be merged, as clauses: a chat template that children are not prompted with.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.
    """
    mine, found = Tokenizer(base.source).template, []
    for other in others:
        theirs = Tokenizer(other.source).template
        if mine and theirs and mine != theirs:
            who = "it has its own, and children" if isinstance(other, Checkpoint) else "it and all children"
            found.append(
                f"{other.location} has another chat template than its base {base.location}: {who} are prompted with the"
                " base's; if all experts were trained with another one, put that into the base's folder"
            )
    return found


def end_tokens(base: Checkpoint, others: Sequence[Model]) -> tuple[int, ...]:
    """The tokens at which every model of an evolution ends a reply: where the base ends, or one of the others.

    So a child stops where the expert stops that it took the habit from.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.

    Returns:
        The base's first, in its order, then the others'.
    """
    tokenizer = Tokenizer(base.source)
    found = list(_ends(base, tokenizer))
    for other in others:
        found += sorted(_ends(other, tokenizer))
    return tuple(dict.fromkeys(found))


def ending_at(model: Checkpoint, base: Checkpoint, ends: tuple[int, ...]) -> dict[str, bytes]:
    """The files in which a model has to differ to end at these tokens: none when it does already.

    Args:
        model: The base, or a full model that was fine-tuned from it.
        base: The base.
        ends: Their ids.
    """
    if set(_ends(model, Tokenizer(base.source))) == set(ends):
        return {}
    content = Tokenizer(model.source).with_ends(ends)
    return {GENERATION: (json.dumps(content, indent=2) + "\n").encode()}


def _ends(model: Model, base: Tokenizer) -> tuple[int, ...]:
    """Where a model ends by itself: by its configuration, and by its tokenizer's end token where that names none; of an
    adapter also where it is not the base's, as trainers change the one without the other.
    """
    tokenizer = Tokenizer(model.source)
    asked = tokenizer.stop != base.stop if isinstance(model, LoraAdapter) else tokenizer.ends is None
    index = (tokenizer.ids or base.ids or {}).get(tokenizer.stop or "") if asked else None
    return (*(tokenizer.ends or ()), *(() if index is None else (index,)))


def _unsupported(model: Checkpoint) -> Iterator[str]:
    for tensor in model.tensors.values():
        if tensor.dtype in ("F64", "C64") or tensor.dtype.startswith("F8"):
            yield f"{tensor.name} of {model.location} is stored as {tensor.dtype}; save it as bf16, fp16 or fp32."


def _problems(base: Checkpoint, other: Model, tokenizer: Tokenizer) -> Iterator[str]:
    pair = f"{other.location} and its base {base.location}"
    if isinstance(other, Checkpoint):
        mine, theirs = base.config.get("architectures"), other.config.get("architectures")
        if mine and theirs and mine != theirs:
            yield f"{pair} differ in architecture: {theirs} against {mine}; {_ONE_BASE}"
        yield from _unlike(base, other, differences(base.config, other.config))
        yield from _tensor_problems(base, other, pair)
    if how := _difference(tokenizer, Tokenizer(other.source)):
        yield f"{pair} have different tokenizers ({how}); fine-tune with the base's tokenizer."


def _unlike(base: Checkpoint, other: Model, found: Iterable[tuple[str, Any, Any]]) -> Iterator[str]:
    for key, mine, theirs in found:
        yield (
            f"{other.location} and its base {base.location} differ in {key}: {_short(theirs)} against {_short(mine)};"
            f" {_ONE_BASE}"
        )


def _short(value: Any) -> str:
    return textwrap.shorten(json.dumps(value, default=str), 80, placeholder=" …")


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


def _difference(base: Tokenizer, other: Tokenizer) -> str | None:
    """How two tokenizers give other ids to a text; None where they do not, or where one is not there to compare.

    A token of padding that only one of them has makes no difference: it is in no prompt and no reply.
    """
    if base.ids is not None and other.ids is not None:
        mine, theirs = base.ids, other.ids
    elif base.pieces and other.pieces:
        if base.pieces != other.pieces:
            return "tokenizer.model differs"
        mine, theirs = base.ids or base.added, other.added
        mine = {token: mine[token] for token in theirs if token in mine}  # what else it has the pieces have
    elif (base.ids or base.pieces) and (other.ids or other.pieces):
        return "tokenizer.model or its format differs"
    else:
        return None
    for token in [*mine, *theirs]:
        one_sided = token not in mine or token not in theirs
        if mine.get(token) != theirs.get(token) and not (one_sided and token in base.padding | other.padding):
            return (
                f"{len(theirs)} against {len(mine)} tokens, {token!r} is {theirs.get(token)} against {mine.get(token)}"
            )
    return None
