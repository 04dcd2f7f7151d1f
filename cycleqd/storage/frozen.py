"""The frozen configuration: all that decides an evolution's results, as it was resolved when the evolution was seeded.

A key that the user's file leaves out has the value that is frozen, so that a default may change. A key that the frozen
configuration lacks did not exist then; `formats` gives it the value that was in force.

Generations, stop rules and report-only tasks may be raised and added later: each such change is a sealed record, an
extension, which names what was in force before it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.loading import is_file
from cycleqd.outside import inside
from cycleqd.search import config as configuration
from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.formats import FORMAT, decode
from cycleqd.storage.inputs import decided, sized, with_fused
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Record, find_record, need_result, read_result

EXTENDABLE = "`cycleqd extend` takes up more generations, later stop rules, report-only tasks and allow_flat_tasks"


def frozen_bytes(config: Config) -> bytes:
    """The configuration as it is stored. The order of tasks and experts is kept: it decides whose turn it is.

    Args:
        config: The configuration that is being seeded.
    """
    return json.dumps({"format": FORMAT, **config.frozen()}, indent=1, ensure_ascii=False).encode()


def parse_frozen(store: Store, data: bytes) -> Config:
    """The configuration that `frozen_bytes` wrote, as it was extended since, with the user's own operators, which are
    stored beside it.

    Args:
        store: Objects of the evolution.
        data: Bytes of config.json.

    Raises:
        IntegrityError: it is not a JSON object, an operator's file is not the one that was frozen, or an extension
            names another configuration.
        InvalidInputError: it is of a format that this version does not read.
    """
    url = store.url(layout.CONFIG)
    tree = decode(layout.CONFIG, data, url)
    for extension in extensions(store, data):
        changed = extension.body["inputs"]
        tree |= {section: {**tree[section], **changed[section]} for section in ("method", "tasks", "evaluation")}
    with tempfile.TemporaryDirectory(prefix="cycleqd-operators-") as folder:
        for value in tree["method"].values():
            if isinstance(value, dict) and is_file(str(value.get("kind"))):
                key = value["kind"].rpartition(":")[0]
                fetch(store, key, Path(key).stem, Path(folder))
        return configuration.parse(tree, url, plugins=Path(folder))


def extensions(store: Store, data: bytes) -> Iterator[Record]:
    """The changes of a frozen configuration since seeding, in their order.

    Args:
        store: Objects of the evolution.
        data: Bytes of config.json.

    Raises:
        IntegrityError: one does not follow from those before it.
    """
    before = hashlib.sha256(data).hexdigest()
    number = 1
    while (found := find_record(store, key := layout.result(layout.extension(number)))) is not None:
        if found.body["inputs"]["before"] != before:
            raise IntegrityError(f"{store.url(key)} extends another configuration; it was altered: restore it")
        yield found
        before, number = found.sha256, number + 1


def changes(extension: Record) -> Iterator[str]:
    """What an extension changed, a clause each: "method.generations 4 → 6", "task 'history' added".

    Args:
        extension: Its record.
    """
    inputs = extension.body["inputs"]
    now = {section: inputs[section] for section in inputs["was"]}
    was = flat(inputs["was"])
    for key, value in flat(now).items():
        if was.get(key) != value:
            yield f"{key} {shown(was.get(key))} → {shown(value)}"
    yield from (f"task '{name}' added" for name in inputs["tasks"])


def shown(value: object) -> str:
    """A number of the configuration in words.

    Args:
        value: The number, None for none.
    """
    return "no limit" if value is None else str(value)


def task_files(store: Store) -> dict[str, JSON]:
    """What seeding and extensions recorded of the tasks' files, by the task's name: digests of data and plug-in.

    Args:
        store: Objects of the evolution.
    """
    found = dict(need_result(store, layout.SEED)["outputs"]["tasks"])
    for extension in extensions(store, store.get(layout.CONFIG)):
        found |= extension.body["outputs"]["tasks"]
    return found


def fetch(store: Store, key: str, sha256: str, folder: Path) -> None:
    """Copy an object below a folder.

    Args:
        store: Objects of the evolution.
        key: Key of the object, relative to the evolution and to the folder.
        sha256: Digest (hex) that it had when it was seeded.
        folder: A folder of this machine.

    Raises:
        IntegrityError: it is not what was seeded, or its key leads out of the folder.
    """
    path = inside(folder, key)
    content = store.get(key)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(f"{store.url(key)} has sha256 {found}, seeded was {sha256}; it was altered: restore it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def adopt(store: Store, config: Config) -> Config:
    """The user's configuration, with what is frozen for every key that it does not set, and `place.fused` decided by
    the base that was seeded; before seeding with `decided`.

    Args:
        store: Objects of the evolution.
        config: The user's configuration.

    Raises:
        ConflictError: it sets keys to other values than the frozen ones; it names them.
    """
    found = store.find(layout.CONFIG)
    if found is None:
        return decided(config, store.client)
    theirs = parse_frozen(store, found)
    whole = configuration.completed(config, theirs)
    if differing := differing_keys(whole, theirs):
        raise ConflictError(
            f"evolution {store.url('')} was started with another configuration (different: {', '.join(differing)});"
            f" restore these, or give the evolution another name ({EXTENDABLE})"
        )
    base = read_result(store, layout.stage("base", "make"))
    if base is None:  # its copying has not ended
        return sized(whole, store.client)
    files = base["outputs"]["checkpoint"]["files"]
    return with_fused(whole, {name: entry["size"] for name, entry in files.items()})


def differing_keys(config: Config, frozen: Config) -> list[str]:
    """The keys, as dotted names, that decide results and are not as they were frozen.

    Args:
        config: The user's configuration, completed.
        frozen: What is in force.
    """
    mine, theirs = ({key: repr(value) for key, value in flat(each.frozen()).items()} for each in (config, frozen))
    found = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
    turns = [(each.search_tasks, tuple(each.models.experts)) for each in (config, frozen)]
    return found or ([] if turns[0] == turns[1] else ["the order of its keys"])


def flat(tree: JSON, prefix: str = "") -> dict[str, object]:
    """A nested configuration as dotted names.

    Args:
        tree: JSON value.
        prefix: Dotted name of the tree itself; "" for the whole configuration.
    """
    if not isinstance(tree, dict):
        return {prefix: tree}
    within = f"{prefix}." if prefix else ""
    return {name: value for key, part in tree.items() for name, value in flat(part, f"{within}{key}").items()}
