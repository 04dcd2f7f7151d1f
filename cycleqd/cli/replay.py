"""cycleqd replay: rebuild a model and compare its digest with the recorded one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cycleqd.cli.export import refuse_filled
from cycleqd.cli.output import answer, warn
from cycleqd.cli.progress import counting
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.replay import difference, rebuild, to_rebuild, weights_size
from cycleqd.storage.evolution import manifest
from cycleqd.storage.family import family


def replay(source: ConfigSource, model: str, folder: Path | None, as_json: bool) -> None:
    """Rebuild the model with the ancestors that were cleaned up.

    Args:
        source: Files and flags that make the configuration.
        model: A model's id, or "best".
        folder: Where it is kept: a new folder or an empty one; None keeps nothing.
        as_json: Print JSON.
    """
    if folder is not None:
        refuse_filled(folder)
    with session(source) as opened, _scratch(folder) as scratch:
        name = opened.model(model)
        members = family(opened.store, [name])
        if not members[name].parents:
            raise InvalidInputError(f"'{name}' was given to the evolution, not made by it; `cycleqd export` copies it")
        names = to_rebuild(opened.store, name, members)
        other = difference(opened.store, name)
        if other:
            warn(f"bytes may differ: {other}")
        with counting(f"rebuilding {name}", weights_size(opened.store, names)) as advance:
            built = rebuild(opened.store, opened.seeded(), names, scratch, advance)
        recorded = manifest(opened.store, name)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (scratch / name).iterdir():
                shutil.move(file, folder / file.name)
    facts = {
        "model": name,
        "rebuilt": names,
        "digest": built.digest,
        "same": built.digest == recorded.digest,
        "folder": str(folder) if folder else None,
    }
    ancestors = f" (with {len(names) - 1} collected ancestors)" if len(names) > 1 else ""
    kept = f"; it is in {folder}" if folder else ""
    answer(as_json, facts, f"{name} rebuilt{ancestors}: digest {built.digest}, as recorded{kept}")


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """A folder for what is rebuilt, on the disk where it is to stay."""
    parent = folder.resolve().parent if folder is not None else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cycleqd-replay-", dir=parent) as path:
        yield Path(path)
