"""Whether models can be merged, judged from headers, configs and tokenizers before anything is written.

Adapters are judged by the tokenizers that trainers save beside them, like full models; one without any has the base's.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.lora import LoraAdapter
from cycleqd.weights.settings import Settings, differences
from cycleqd.weights.tokenizer import GENERATION, TEMPLATE, Tokenizer

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


def default_problems(base: Checkpoint, mine: Settings, others: Iterable[tuple[Checkpoint, Settings]]) -> list[str]:
    """Where models compute differently once their class has filled in what their configurations leave out.

    Args:
        base: The base model.
        mine: Its configuration as its class reads it, and nothing that the class does not declare.
        others: Full models that were fine-tuned from it, each with its configuration as its class reads it.
    """
    return [
        sentence
        for other, theirs in others
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
    """Why no prompts can be made, one sentence each; what a model lacks it gets from the others: see `completing`.

    Args:
        base: The base model.
        others: Models and adapters that were fine-tuned from it.
    """
    where = base.location
    if not Tokenizer(base.source).exists:
        return [f"{where} has no tokenizer; copy the files of the one that the experts were trained with there."]
    if _shared_template(base, others) is not None:
        return []
    having = [other.location for other in others if Tokenizer(other.source).template is not None]
    if not having:
        return [
            f"{where} has no chat template, which prompts are made with, and no expert has one; put that into its"
            f" folder ({TEMPLATE}) which the experts were trained with."
        ]
    return [
        f"{where} has no chat template, which prompts are made with, and the experts have different ones"
        f" ({_some(having)}); put one of them into its folder ({TEMPLATE}): children are prompted with that."
    ]


def completing(model: Checkpoint, base: Checkpoint, others: Sequence[Model]) -> dict[str, bytes]:
    """The files that a model lacks to be prompted: the base's tokenizer, and the base's chat template.

    A base without a template gets the experts', where all that have one agree.

    Args:
        model: The base, or a full model that was fine-tuned from it.
        base: The base.
        others: All models and adapters that were fine-tuned from it.
    """
    mine, files = Tokenizer(model.source), {}
    if not mine.exists:
        given = Tokenizer(base.source).files()
        files = {name: content for name, content in given.items() if name not in (GENERATION, TEMPLATE)}
    if mine.template is None and (shared := _shared_template(base, others)) is not None:
        files[TEMPLATE] = shared.encode()
    return files


def _shared_template(base: Checkpoint, others: Sequence[Model]) -> str | None:
    """The base's chat template, or the one that the others agree on."""
    found = Tokenizer(base.source).template
    theirs = [template for other in others if (template := Tokenizer(other.source).template) is not None]
    if found is None and theirs and all(template == theirs[0] for template in theirs):
        found = theirs[0]
    return None if found is None else found[0]


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
    if base.pieces and other.pieces and base.pieces != other.pieces and (base.cuts_by_pieces or other.cuts_by_pieces):
        return "tokenizer.model differs"
    mine, theirs = base.ids, other.ids
    if mine is None or theirs is None:
        return None
    for token in [*mine, *theirs]:
        one_sided = token not in mine or token not in theirs
        if mine.get(token) != theirs.get(token) and not (one_sided and token in base.padding | other.padding):
            return (
                f"{len(theirs)} against {len(mine)} tokens, {token!r} is {theirs.get(token)} against {mine.get(token)}"
            )
    return None
