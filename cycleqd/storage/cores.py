"""Models in the span of low-rank experts, in S3: a core is one small object, named and verified by its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cycleqd.errors import IntegrityError
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.evolution import core_key
from cycleqd.storage.models import fetched
from cycleqd.storage.objects import Store
from cycleqd.weights.basis import Basis, open_basis
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import CORE, Manifest
from cycleqd.weights.span import Core


def save_core(store: Store, core: Core) -> Manifest:
    """Write a model, unless an equal one is there. Models that share an object are deleted apart (see cleaning).

    Args:
        store: The evolution.
        core: The model.

    Returns:
        Its one file, with size and digest.
    """
    data = core.to_bytes()
    made = Manifest.of_core(data)
    key = layout.core(made.digest)
    if store.find(key) != data:  # none, or a damaged one
        store.put(key, data)
    return made


def load_core(store: Store, model: ModelRef) -> Core:
    """Read a model; no record needs to be believed.

    Args:
        store: The evolution.
        model: Id and digest.

    Raises:
        IntegrityError: It is gone, or is something else.
    """
    return _read(store, core_key(store, model), model.digest)


def cores(store: Store, models: Sequence[ModelRef]) -> list[Core]:
    """`load_core` of each.

    Args:
        store: The evolution.
        models: Ids and digests.
    """
    return [load_core(store, model) for model in models]


def save_merged(store: Store, child: str, core: Core) -> Manifest:
    """Write a child before its mutation, which belongs to this child alone.

    Args:
        store: The evolution.
        child: Id of the child.
        core: What was merged.

    Returns:
        Its one file, with size and digest.
    """
    data = core.to_bytes()
    store.put(f"{layout.merged(child)}/{CORE}", data)
    return Manifest.of_core(data)


def load_merged(store: Store, child: str, digest: str) -> Core:
    """Read what `save_merged` wrote. Raises as `load_core` does.

    Args:
        store: The evolution.
        child: Id of the child.
        digest: As it was recorded.
    """
    return _read(store, f"{layout.merged(child)}/{CORE}", digest)


def _read(store: Store, key: str, digest: str) -> Core:
    data = store.find(key)
    if data is None:
        raise IntegrityError(f"{store.url(key)} is not there: it was cleaned up; `cycleqd replay` rebuilds the model")
    found = Manifest.of_core(data).digest
    if found != digest:
        raise IntegrityError(f"{store.url(key)} has digest {found}, recorded was {digest}; restore it")
    return Core.from_bytes(data, store.url(key))


@contextmanager
def opened_basis(store: Store, place: Place) -> Iterator[Basis]:
    """The basis, fetched into the machine's cache and verified; it stays there until the block ends.

    Args:
        store: The evolution.
        place: Names the cache's size.
    """
    with fetched(store, place, layout.BASIS) as folder:
        yield open_basis(LocalSource(folder))
