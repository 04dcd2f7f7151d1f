"""Whether the models that are given work as transformers reads them, before an engine meets them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cycleqd.outside import inside
from cycleqd.storage.staging import parts
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import default_problems
from cycleqd.weights.lora import LoraAdapter


def try_models(opened: Mapping[str, Checkpoint | LoraAdapter], engine: str) -> Iterator[str]:
    """What is wrong with tokenizers, chat templates, model classes and what these fill in, a sentence each.

    An adapter has the base's. Nothing where transformers is missing.

    Args:
        opened: The models, by id, the base first where it could be opened.
        engine: The configuration's; of a user's own nothing is known, and only tokenizers and templates are tried.
    """
    from cycleqd.evaluation.engines.vllm import CONVERTED
    from cycleqd.evaluation.model_check import tried, write_shapes

    if importlib.util.find_spec("transformers") is None:
        return
    models = [found for found in opened.values() if isinstance(found, Checkpoint)]
    with tempfile.TemporaryDirectory(prefix="cycleqd-models-") as scratch:
        folders = [_folder(model, Path(scratch) / str(number)) for number, model in enumerate(models)]
        for model, folder in zip(models, folders, strict=True):
            write_shapes(model, folder)
        found = dict(zip([model.location for model in models], tried(folders), strict=True))
    own = ":" in engine
    for location, each in found.items():
        if each.tokenizer is not None:
            yield f"{location}: {each.tokenizer}; correct the model's files"
        if each.misfit is not None and not own:
            yield f"{location} cannot be evaluated: {each.misfit}"
        if each.converted and engine != "transformers" and not own:
            yield f"{location}: {CONVERTED}"
    base = opened.get("base")
    if isinstance(base, Checkpoint):
        filled = {location: each.filled for location, each in found.items() if each.filled is not None}
        yield from default_problems(base, list(opened.values()), filled)


def _folder(model: Checkpoint, scratch: Path) -> Path:
    """A copy of a model's folder without its weights."""
    scratch.mkdir()
    for name, size in parts(model).items():
        if not name.endswith(".safetensors"):
            inside(scratch, name).write_bytes(bytes(model.source.read_range(name, 0, size)))
    return scratch
