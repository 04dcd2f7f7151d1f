"""Whether the tokenizers and chat templates of the models that are given work, before an engine meets them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cycleqd.outside import inside
from cycleqd.search.config import ChatConfig
from cycleqd.storage.staging import parts
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.lora import LoraAdapter


def check_templates(opened: Mapping[str, Checkpoint | LoraAdapter], chats: Iterable[ChatConfig] = ()) -> Iterator[str]:
    """What is wrong with them, a sentence a model; an adapter has the base's. Nothing where transformers is missing.

    Args:
        opened: The models, by id.
        chats: How tasks put conversations before them.
    """
    from cycleqd.evaluation.engines import Chat
    from cycleqd.evaluation.template_check import problems

    models = [found for found in opened.values() if isinstance(found, Checkpoint)]
    if importlib.util.find_spec("transformers") is None:
        return
    with tempfile.TemporaryDirectory(prefix="cycleqd-templates-") as scratch:
        folders = [_folder(model, Path(scratch) / str(number)) for number, model in enumerate(models)]
        ways = [Chat(), *(Chat(chat.system, chat.template, chat.prefill) for chat in chats)]
        for model, problem in zip(models, problems(folders, ways), strict=True):
            if problem is not None:
                yield f"{model.location}: {problem}; correct the model's files"


def _folder(model: Checkpoint, scratch: Path) -> Path:
    """A copy of a model's folder without its weights."""
    scratch.mkdir()
    for name, size in parts(model).items():
        if not name.endswith(".safetensors"):
            inside(scratch, name).write_bytes(bytes(model.source.read_range(name, 0, size)))
    return scratch
