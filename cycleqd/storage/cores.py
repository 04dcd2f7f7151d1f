"""Models in the span of low-rank experts, in S3: a core is one small object, verified against its model's record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cycleqd.errors import IntegrityError
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cache import CheckpointCache
from cycleqd.storage.evolution import manifest, size_in_bytes
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.weights.basis import Basis, open_basis
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import CORE, FileEntry, Manifest
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
    return Manifest({CORE: FileEntry(len(data), hashlib.sha256(data).hexdigest())})


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
    found = []
    for model in models:
        recorded = manifest(store, model.id)
        if recorded.digest != model.digest:
            raise IntegrityError(
                f"model '{model.id}' of {store.url('')} has digest {recorded.digest}, but {model.digest} is wanted;"
                " it was made anew from something else"
            )
        found.append(load_core(store, layout.checkpoint(model.id), recorded))
    return found


@contextmanager
def opened_basis(store: Store, place: Place) -> Iterator[Basis]:
    """The basis, fetched into the machine's cache and verified; it stays there until the block ends.

    Args:
        store: The evolution.
        place: Names the cache's size.
    """
    recorded = manifest(store, layout.BASIS)
    cache = CheckpointCache(Settings.from_environment().cache, size_in_bytes(place.cache_size))
    with cache.fetch(source(store, layout.checkpoint(layout.BASIS), recorded), recorded) as folder:
        yield open_basis(LocalSource(folder))
