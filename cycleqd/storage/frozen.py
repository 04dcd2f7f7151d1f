"""The frozen configuration: all that decides an evolution's results, as it was resolved when the evolution was seeded.

A key that the user's file leaves out has the value that is frozen, so that a default may change. A key that the frozen
configuration lacks did not exist then; `formats` gives it the value that was in force.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.search import config as configuration
from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.formats import FORMAT, decode
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result


def frozen_bytes(config: Config) -> bytes:
    """The configuration as it is stored. The order of tasks and experts is kept: it decides whose turn it is."""
    return json.dumps({"format": FORMAT, **config.frozen()}, indent=1, ensure_ascii=False).encode()


def parse_frozen(store: Store, data: bytes, record: JSON) -> Config:
    """The configuration that `frozen_bytes` wrote, with the operators of its user's own that seeding's record names.

    Raises as `decode` does, IntegrityError for an operator that is not what was seeded.
    """
    url = store.url(layout.CONFIG)
    with tempfile.TemporaryDirectory(prefix="cycleqd-operators-") as folder:
        for key, file in record["outputs"]["operators"].items():
            fetch(store, layout.operator(key), file["sha256"], Path(folder))
        return configuration.parse(decode(layout.CONFIG, data, url), url, plugins=Path(folder))


def fetch(store: Store, key: str, sha256: str, folder: Path) -> None:
    """Copy an object below a folder. Raises IntegrityError when it is not what was seeded."""
    content = store.get(key)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(f"{store.url(key)} has sha256 {found}, seeded was {sha256}; it was altered: restore it")
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def adopt(store: Store, config: Config) -> Config:
    """The user's configuration, with what is frozen for every key that it does not set; as it is before seeding.

    Raises ConflictError naming the keys that it sets otherwise than they are frozen: the evolution was started with
    another configuration.
    """
    found = store.find(layout.CONFIG)
    if found is None:
        return config
    record = read_result(store, layout.SEED)
    if record is None:  # seeding is under way: no default has changed since, and operators may not be stored yet
        whole, theirs = config, decode(layout.CONFIG, found, store.url(layout.CONFIG))
    else:
        frozen_config = parse_frozen(store, found, record)
        whole, theirs = configuration.completed(config, frozen_config), frozen_config.frozen()
    mine, frozen = ({key: repr(value) for key, value in flat(tree).items()} for tree in (whole.frozen(), theirs))
    if list(mine.items()) != list(frozen.items()):
        differing = sorted(key for key in mine | frozen if mine.get(key) != frozen.get(key)) or [
            "the order of its keys"
        ]
        raise ConflictError(
            f"evolution {store.url('')} was started with another configuration (different: {', '.join(differing)});"
            " restore these, or give the evolution another name"
        )
    return whole


def flat(tree: JSON, prefix: str = "") -> dict[str, object]:
    """A nested configuration as dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    within = f"{prefix}." if prefix else ""
    return {name: value for key, part in tree.items() for name, value in flat(part, f"{within}{key}").items()}
