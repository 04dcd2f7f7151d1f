"""Models in the span of low-rank experts, in S3: a core is one small object, verified against its model's record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cycleqd.errors import IntegrityError
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest_of
from cycleqd.storage.models import fetched
from cycleqd.storage.objects import Store
from cycleqd.weights.basis import Basis, open_basis
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import CORE, Manifest
from cycleqd.weights.span import Core


def save_core(store: Store, folder: str, core: Core) -> Manifest:
    """Write a core.

    Args:
        store: The evolution.
        folder: Key of the model's checkpoint folder.
        core: The model.

    Returns:
        Its one file, with size and digest.
    """
    data = core.to_bytes()
    store.put(f"{folder}/{CORE}", data)
    return Manifest.of_core(data)


def load_core(store: Store, folder: str, recorded: Manifest) -> Core:
    """Read a core.

    Args:
        store: The evolution.
        folder: Key of the folder that holds it.
        recorded: Its recorded file.

    Raises:
        IntegrityError: It is not the file that was recorded, or is gone.
    """
    url = store.url(f"{folder}/{CORE}")
    data = store.find(f"{folder}/{CORE}")
    if data is None:
        raise IntegrityError(f"{url} is gone; `cycleqd replay` rebuilds the model")
    found = hashlib.sha256(data).hexdigest()
    if found != recorded.files[CORE].sha256:
        raise IntegrityError(f"{url} has sha256 {found}, recorded was {recorded.files[CORE].sha256}; restore it")
    return Core.from_bytes(data, url)


def cores(store: Store, models: Sequence[ModelRef]) -> list[Core]:
    """The cores of models.

    Args:
        store: The evolution.
        models: Ids and digests.

    Raises:
        IntegrityError: A model has another digest by now, or its file is not the one that was recorded.
    """
    return [load_core(store, layout.checkpoint(model.id), manifest_of(store, model)) for model in models]


@contextmanager
def opened_basis(store: Store, place: Place) -> Iterator[Basis]:
    """The basis, fetched into the machine's cache and verified; it stays there until the block ends.

    Args:
        store: The evolution.
        place: Names the cache's size.
    """
    with fetched(store, place, layout.BASIS) as folder:
        yield open_basis(LocalSource(folder))
