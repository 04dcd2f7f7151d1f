"""Whether the models that are given work as transformers reads them, before an engine meets them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cycleqd.errors import InvalidInputError
from cycleqd.outside import inside
from cycleqd.search.tasks import ChatConfig
from cycleqd.storage.staging import parts
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import completing, default_problems
from cycleqd.weights.lora import LoraAdapter


def try_models(
    opened: Mapping[str, Checkpoint | LoraAdapter], engine: str, chats: Iterable[ChatConfig] = ()
) -> Iterator[str]:
    """What is wrong with tokenizers, chat templates, model classes and what these fill in, a sentence each.

    An adapter has the base's. Nothing where transformers is missing.

    Args:
        opened: The models, by id, the base first where it could be opened.
        engine: The configuration's; of a user's own nothing is known, and only tokenizers and templates are tried.
        chats: How tasks put conversations before them.
    """
    from cycleqd.evaluation.engines import Chat
    from cycleqd.evaluation.engines.vllm import CONVERTED
    from cycleqd.evaluation.model_check import tried

    if importlib.util.find_spec("transformers") is None:
        return
    models = {name: found for name, found in opened.items() if isinstance(found, Checkpoint)}
    with tempfile.TemporaryDirectory(prefix="cycleqd-models-") as scratch:
        folders = [_folder(model, opened, Path(scratch) / str(number)) for number, model in enumerate(models.values())]
        ways = [Chat(), *(Chat(chat.system, chat.template, chat.prefill) for chat in chats)]
        found = dict(zip(models, tried(folders, ways), strict=True))
    own = ":" in engine
    for name, each in found.items():
        where = models[name].location
        if each.tokenizer is not None:
            yield f"{where}: {each.tokenizer}; correct the model's files"
        if each.misfit is not None and not own:
            yield f"{where} cannot be evaluated: {each.misfit}"
        if each.converted and engine != "transformers" and not own:
            yield f"{where}: {CONVERTED}"
    filled = {name: each.filled for name, each in found.items() if each.filled is not None and each.misfit is None}
    if (mine := filled.pop("base", None)) is not None:
        yield from default_problems(models["base"], mine, [(models[name], theirs) for name, theirs in filled.items()])


def _folder(model: Checkpoint, opened: Mapping[str, Checkpoint | LoraAdapter], scratch: Path) -> Path:
    """A model's folder as seeding copies it, with its weights' names and shapes in the place of the weights."""
    from cycleqd.evaluation.model_check import write_shapes

    scratch.mkdir()
    for name, size in parts(model).items():
        if not name.endswith(".safetensors"):
            inside(scratch, name).write_bytes(bytes(model.source.read_range(name, 0, size)))
    base, *others = opened.values()
    if base is opened.get("base") and isinstance(base, Checkpoint):
        with suppress(InvalidInputError):  # a broken tokenizer: that is a problem already
            for name, content in completing(model, base, others).items():
                inside(scratch, name).write_bytes(content)
    write_shapes(model, scratch)
    return scratch
