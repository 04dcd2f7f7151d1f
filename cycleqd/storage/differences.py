"""What a user's configuration and files hold now against what was seeded.

Stages read the copies in S3, whatever becomes of the files: whoever edits one must be told that nothing changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cycleqd.errors import CycleQDError
from cycleqd.outside import parse_json
from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest_from
from cycleqd.storage.frozen import differing_keys, flat, task_files
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store, file_sha256
from cycleqd.storage.results import read_result
from cycleqd.storage.staging import content, find_task, given, is_companion
from cycleqd.weights.tokenizer import GENERATION

_SMALL = 32 << 20  # bytes; a larger file that is older than its copy is compared in places
_PLACES, _PLACE = 8, 4096
_ENDS = "eos_token_id"  # which seeding sets: the end tokens of all models
_SHOWN = 4
_COPIES = "the evolution goes on with the copies that it was seeded with; to use yours, give it another name"


def differences(store: Store, config: Config, whole: Config) -> Iterator[str]:
    """What differs from what was seeded, a sentence each; nothing before seeding has ended.

    A file that is gone is no difference: nothing reads it any more.

    Args:
        store: Objects of the evolution.
        config: The user's configuration, as the file is.
        whole: The same with what is frozen for all that it leaves out, as `adopt` returns it.
    """
    seeded = read_result(store, layout.SEED)
    if seeded is None:
        return
    yield from _left_out(config, whole)
    for task, files in task_files(store).items():
        if changed := _task(store, whole, task, files):
            yield f"task '{task}': {_named(changed)} changed since it was seeded: {_COPIES}"
    began = store.get_json(layout.run(layout.SEED))["started"] / 1000
    for model, path in given(whole).items():
        folder = Path(path)
        if not path.startswith("s3://") and folder.is_dir():
            changed = [*_model(store, model, folder, seeded["outputs"]["models"][model], began)]
            if changed:
                yield f"{model}: {_named(changed)} in {path} changed since it was seeded: {_COPIES}"


def _left_out(config: Config, whole: Config) -> Iterator[str]:
    """The keys that the file leaves out and whose default is not what is in force."""
    now, frozen = flat(config.frozen()), flat(whole.frozen())
    keys = [key for key in differing_keys(config, whole) if key in frozen and not _undecided(key)]
    if keys:
        shown = [f"{key} is {frozen[key]!r} (now by default: {now.get(key)!r})" for key in keys[:_SHOWN]]
        more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield f"settings that the file leaves out are as they were seeded: {', '.join(shown)}{more}"


def _undecided(key: str) -> bool:
    """Whether a key is decided from what the experts are, where the file says nothing."""
    return key == "models.weights" or (key.startswith("models.experts.") and key.endswith(".rank"))


def _named(files: list[str]) -> str:
    more = f" and {len(files) - _SHOWN} more files" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more


def _task(store: Store, whole: Config, name: str, files: Any) -> list[str]:
    """The files of a task, data and plug-in, that are not as they were copied; nothing where they cannot be read."""
    try:
        found = find_task(store.client, name, whole.tasks[name])
        now = {key: content(key, where) for key, where in found.data.items()}
        plugin = {key: content(key, where) for key, where in found.plugin.items()}
    except (CycleQDError, OSError):
        return []
    seeded: Mapping[str, Any] = files["data"]["files"]
    changed = sorted(seeded.keys() ^ now.keys())
    changed += [key for key in now if key in seeded and _sha256(now[key]) != seeded[key]["sha256"]]
    return changed + [key for key, data in plugin.items() if _sha256(data) != (files["plugin"] or {}).get("sha256")]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _model(store: Store, model: str, folder: Path, made: Any, began: float) -> Iterator[str]:
    """The files of a model's folder that are not as they were copied."""
    seeded = made["files"]
    copy = source(store, layout.checkpoint(model), manifest_from(made))
    present = {path.name for path in folder.iterdir() if path.is_file()}
    yield from sorted(name for name in present - seeded.keys() if is_companion(name) and name != GENERATION)
    for name, entry in seeded.items():
        file = folder / name
        if name == GENERATION:
            if name in present and _settings(file.read_bytes()) != _settings(copy.read_range(name, 0, entry["size"])):
                yield name
        elif name not in present or file.stat().st_size != entry["size"]:
            yield name
        elif entry["size"] <= _SMALL or file.stat().st_ctime >= began:
            if file_sha256(file) != entry["sha256"]:
                yield name
        elif any(bytes(copy.read_range(name, *place)) != _read(file, *place) for place in _places(entry["size"])):
            yield name


def _settings(data: Any) -> Any:
    """A generation configuration without what seeding sets in it; its bytes, where it is not one."""
    try:
        found = parse_json(bytes(data))
    except ValueError:
        return bytes(data)
    return {key: value for key, value in found.items() if key != _ENDS} if isinstance(found, dict) else found


def _places(size: int) -> Iterator[tuple[int, int]]:
    """Evenly spread stretches of a large file: another training leaves none of them as it was."""
    for index in range(_PLACES):
        start = (size - _PLACE) * index // (_PLACES - 1)
        yield start, start + _PLACE


def _read(file: Path, start: int, stop: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(stop - start)
