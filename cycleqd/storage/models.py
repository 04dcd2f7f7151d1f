"""Checkpoints of an evolution as the weights code wants them, and what a stage needs to make one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cycleqd.errors import IntegrityError, InvalidInputError, UnavailableError
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cache import CheckpointCache
from cycleqd.storage.checkpoints import S3Sink, S3Source
from cycleqd.storage.evolution import manifest, manifest_of, size_in_bytes
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import Manifest


def open_model(store: Store, model: ModelRef) -> Checkpoint:
    """A model's checkpoint in S3 for reading; every byte that is read is checked against its record.

    Args:
        store: Objects of the evolution.
        model: Id and the digest that the checkpoint must have.

    Raises:
        IntegrityError: the record is missing or has another digest, or files are missing or of another size.
    """
    return open_checkpoint(_stored(store, model)[0])


@contextmanager
def opened(store: Store, place: Place, models: Sequence[ModelRef], often: bool = False) -> Iterator[list[Checkpoint]]:
    """`open_model` for a stage's inputs, by way of the machine's cache.

    The base and the experts, which every generation reads, are fetched into a cache that lasts; other models are read
    there when an evaluation has left them. Where there is no room they are streamed from S3.

    Args:
        store: Objects of the evolution.
        place: Its `cache_size` bounds the cache.
        models: The models to open, in the order of the result.
        often: Whether this process opens them again and again: then base and experts are fetched into any cache, and
            their bytes there are believed, which were verified when they were fetched.
    """
    settings = Settings.from_environment()
    cache = CheckpointCache(settings.cache, size_in_bytes(place.cache_size))
    with ExitStack() as held:
        found = []
        for model in models:
            stored, recorded = _stored(store, model)
            again = (often or settings.cache_lasts) and layout.child_generation(model.id) is None
            try:
                folder = held.enter_context(cache.fetch(stored, recorded) if again else cache.find(recorded))
            except (InvalidInputError, UnavailableError):  # larger than the cache, or no room beside what is in use
                folder = None
            digests = {} if often else recorded.digests()
            found.append(open_checkpoint(LocalSource(folder, digests) if folder else stored))
        yield found


@contextmanager
def fetched(store: Store, place: Place, model: str) -> Iterator[Path]:
    """A model's folder in the machine's cache, verified; it stays there until the block ends.

    Args:
        store: Objects of the evolution.
        place: Its `cache_size` bounds the cache.
        model: The model's id.
    """
    recorded = manifest(store, model)
    cache = CheckpointCache(Settings.from_environment().cache, size_in_bytes(place.cache_size))
    with cache.fetch(source(store, layout.checkpoint(model), recorded), recorded) as folder:
        yield folder


def _stored(store: Store, model: ModelRef) -> tuple[S3Source, Manifest]:
    """The model in S3, whole by its files' sizes, and its manifest."""
    recorded = manifest_of(store, model)
    stored = source(store, layout.checkpoint(model.id), recorded)
    sizes = stored.files()
    for name, entry in recorded.files.items():
        if sizes.get(name) != entry.size:
            raise IntegrityError(
                f"{stored.location}/{name} has {sizes.get(name, 'no')} bytes, recorded were {entry.size}; deleted or"
                f" damaged: `cycleqd replay {model.id}` rebuilds it"
            )
    return stored, recorded


def source(store: Store, folder: str, recorded: Manifest) -> S3Source:
    """A checkpoint folder of the evolution for reading, verified against its manifest.

    Args:
        store: Objects of the evolution.
        folder: Key of the folder, relative to the evolution.
        recorded: Manifest that what is read must match.
    """
    return S3Source(store.client, store.bucket, store.key(folder), recorded.digests())


def sink(store: Store, folder: str) -> S3Sink:
    """A folder of the evolution to write a checkpoint into.

    Args:
        store: Objects of the evolution.
        folder: Key of the folder, relative to the evolution.
    """
    return S3Sink(store.client, store.bucket, store.key(folder))


def device(place: Place) -> str:
    """Where matrices are mutated, "cuda" or "cpu".

    Args:
        place: Its `device`; "auto" is CUDA where there is a device.
    """
    import torch

    if place.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return place.device
