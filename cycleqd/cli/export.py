"""cycleqd export: a model's checkpoint as a local Hugging Face folder, verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cycleqd.cli.output import answer, size
from cycleqd.cli.progress import counting
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.replay import stored
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest
from cycleqd.storage.objects import Store
from cycleqd.weights.manifest import Manifest


def export(source: ConfigSource, model: str, folder: Path, as_json: bool) -> None:
    """Download every file of the model and check it against the recorded sha256.

    Args:
        source: Files and flags that make the configuration.
        model: A model's id, or "best".
        folder: Made if need be.
        as_json: Print JSON.
    """
    refuse_filled(folder)
    with session(source) as opened:
        name = opened.model(model)
        recorded = manifest(opened.store, name)
        refuse_collected(opened.store, name)
        with counting(f"exporting {name}", recorded.size) as advance:
            _download(opened.store, name, recorded, folder, advance)
    facts = {"model": name, "folder": str(folder), "digest": recorded.digest, "bytes": recorded.size}
    answer(as_json, facts, f"{name} is in {folder} ({size(recorded.size)}), digest {recorded.digest}")


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
        store.get_file(f"{layout.checkpoint(model)}/{name}", folder / name, entry.sha256, advance)
