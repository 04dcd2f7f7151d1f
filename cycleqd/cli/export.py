"""cycleqd export: a model as a local folder: a checkpoint or an adapter as it is, a core as an adapter or merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cycleqd.cli.output import answer, size
from cycleqd.cli.progress import counting
from cycleqd.cli.session import Session, session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.outside import inside
from cycleqd.run.replay import stored
from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest, model_ref, size_in_bytes
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result
from cycleqd.weights.local import LocalSink
from cycleqd.weights.lora import WEIGHTS
from cycleqd.weights.manifest import Manifest

KINDS = ("a full checkpoint", "an adapter")


def export(source: ConfigSource, model: str, folder: Path, merged: bool, rank: int | None, as_json: bool) -> None:
    """Write a model into a folder: as it is, or in the span as an adapter or merged into the base.

    Args:
        source: Files and flags that make the configuration.
        model: A model's id, or "best".
        folder: Made if need be.
        merged: Merge a core into the base.
        rank: Cut a core's adapter to this rank.
        as_json: Print JSON.
    """
    if merged and rank is not None:
        raise InvalidInputError("--rank cuts an adapter, and --merged writes none: give one of the two")
    refuse_filled(folder)
    with session(source) as opened:
        name = opened.model(model)
        refuse_collected(opened.store, name)
        recorded = manifest(opened.store, name)
        if not recorded.is_core and (merged or rank is not None):
            raise InvalidInputError(
                f"'{name}' is {KINDS[WEIGHTS in recorded.files]}: it is exported as it is, without flags"
            )
        if recorded.is_core:
            facts = _from_core(opened, name, folder, merged, rank)
        else:
            with counting(f"exporting {name}", recorded.size) as advance:
                _download(opened.store, name, recorded, folder, advance)
            facts = {"digest": recorded.digest, "bytes": recorded.size}
    facts = {"model": name, "folder": str(folder), **facts}
    answer(as_json, facts, _sentence(facts))


def _from_core(opened: Session, model: str, folder: Path, merged: bool, rank: int | None) -> dict[str, Any]:
    """The folder of a model that is a core; digest, bytes, and how far it is from what was scored."""
    from cycleqd.storage.cores import load_core
    from cycleqd.storage.making import write_full, write_peft
    from cycleqd.weights.span import cut, refuse_dense

    store, config = opened.store, opened.seeded()
    core = load_core(store, model_ref(store, model))
    if merged:
        size_limit = size_in_bytes(config.models.shard_size)
        written = write_full(store, config.place, model, core, LocalSink(folder), size_limit)
        form = "merged into the base and rounded once"
    else:
        refuse_dense(core)
        written = write_peft(store, config.place, core, LocalSink(folder), opened.config.models.base, rank)
        form = "a PEFT adapter"
    found: dict[str, Any] = {"form": form, "digest": written.digest, "bytes": written.size, "scored_as": model}
    if rank is not None:
        found["relative_error"] = cut(core, rank)
    scores = _held_out(store, config, model)
    return {**found, **({"held_out": scores} if scores else {})}


def _held_out(store: Store, config: Config, model: str) -> dict[str, float]:
    """Held-out scores that are recorded, by task."""
    found = {task: read_result(store, layout.evaluation(model, task, "test")) for task in config.tasks}
    return {task: body["outputs"]["score"] for task, body in found.items() if body is not None}


def _sentence(facts: Mapping[str, Any]) -> str:
    """What was written, and which scores hold for it."""
    form = f", {facts['form']}" if "form" in facts else ""
    text = f"{facts['model']} is in {facts['folder']} ({size(facts['bytes'])}{form}), digest {facts['digest']}"
    if "relative_error" in facts:
        text += f"; the cut to its rank leaves out {100 * facts['relative_error']:.2g} % of the task vector (Frobenius)"
    if "scored_as" in facts:
        scores = ", ".join(f"{task} {100 * value:.1f} %" for task, value in facts.get("held_out", {}).items())
        text += f"; scored as {facts['scored_as']}" + (
            f" (held out: {scores})" if scores else ", not on held-out samples"
        )
    return text


def refuse_filled(folder: Path) -> None:
    """Raise InvalidInputError unless the folder is absent or empty.

    Args:
        folder: Where files are to be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInputError(f"{folder} exists and is not an empty folder; give another one")


def refuse_collected(store: Store, model: str) -> None:
    """Raise InvalidInputError when the model's files were cleaned up.

    Args:
        store: The evolution.
        model: Id of a model that was made.
    """
    if not stored(store, model):
        raise InvalidInputError(
            f"the files of '{model}' were cleaned up, as no archive needs them;"
            f" `cycleqd replay {model} --folder FOLDER` rebuilds them with the same bytes"
        )


def _download(store: Store, model: str, recorded: Manifest, folder: Path, advance: Callable[[int], None]) -> None:
    """Write the checkpoint's files into the folder, each verified; `advance` is called with every file's bytes."""
    for name, entry in recorded.files.items():
        store.get_file(f"{layout.checkpoint(model)}/{name}", inside(folder, name), entry.sha256, advance)
