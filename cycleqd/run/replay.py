"""Rebuilding a model from its lineage, with the bytes it had: in a local folder, from whatever is still in S3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.records import JSON, Child, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.evolution import core_key, find_child, manifest, size_in_bytes
from cycleqd.storage.family import Family
from cycleqd.storage.models import open_model
from cycleqd.storage.objects import Store
from cycleqd.storage.results import machine, need_result
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.manifest import CORE, Manifest


def to_rebuild(store: Store, model: str, members: Family) -> list[str]:
    """The model and its collected ancestors, parents first. Only the model itself is rebuilt if S3 still holds it.

    Args:
        store: The evolution.
        model: The model's id.
        members: Its family.
    """
    order: list[str] = []
    waiting = [(model, False)]
    while waiting:
        name, ready = waiting.pop()
        if name in order or (name != model and stored(store, name)):
            continue
        if ready:
            order.append(name)
        else:
            waiting.append((name, True))
            waiting += [(parent, False) for parent, _ in members[name].parents]
    return order


def stored(store: Store, model: str) -> bool:
    """Whether all files of a model's checkpoint are in S3, judged by names and sizes.

    Args:
        store: The evolution.
        model: The model's id.
    """
    recorded, folder = manifest(store, model), layout.checkpoint(model)
    if recorded.is_core:
        found = store.carried(core_key(store, ModelRef(model, recorded.digest)))
        return found is not None and found[0] == recorded.size
    sizes = store.list(folder)
    return all(sizes.get(f"{folder}/{name}") == entry.size for name, entry in recorded.files.items())


def weights_size(store: Store, names: list[str]) -> int:
    """Bytes of the models' weights together.

    Args:
        store: The evolution.
        names: Ids of models.
    """
    files = [file for name in names for file in manifest(store, name).files.items()]
    return sum(entry.size for file, entry in files if file.endswith(".safetensors"))


def rebuild(store: Store, config: Config, names: list[str], folder: Path, progress: Callable[[int], None]) -> Manifest:
    """Rebuild models in a local folder; the last one's manifest.

    Args:
        store: The evolution.
        config: The evolution's configuration.
        names: Ids of the models, parents first.
        folder: Each model is written to a folder of its name in it.
        progress: Called with the bytes of every tensor that is done; they add up to about `weights_size`.

    Raises:
        IntegrityError: A model's digest differs from its record; the machines are named when these differ, too.
    """
    made: dict[str, Manifest] = {}
    for name in names:
        made[name] = _make(store, config, name, folder, made, progress)
        recorded = manifest(store, name)
        if made[name].digest != recorded.digest:
            raise IntegrityError(
                f"rebuilding '{name}' gave digest {made[name].digest}, recorded was {recorded.digest}"
                f" ({difference(store, name) or 'on the same kind of machine'}); rebuild it where it was made"
            )
    return made[names[-1]]


def difference(store: Store, model: str) -> str:
    """How this machine differs from the one that made the model, as a clause; empty when bytes should be equal.

    Args:
        store: The evolution.
        model: The model's id.
    """
    here, there = machine(), _run(store, model)
    parts = []
    for key in ("cpu", "instruction_sets"):
        if there.get(key) != here[key]:
            parts.append(f"{key} {there.get(key)} there, {here[key]} here")
    for library in ("torch", "numpy"):
        old, new = there.get("libraries", {}).get(library), here["libraries"].get(library)
        if old != new:
            parts.append(f"{library} {old} there, {new} here")
    if there.get("device", "cpu") != "cpu":
        parts.append(f"made on {there['device']}")
    return "; ".join(parts)


def _run(store: Store, model: str) -> JSON:
    for folder in layout.makers(model):
        found = store.find_json(layout.run(folder))
        if found is not None:
            return found
    return {}


def _make(
    store: Store,
    config: Config,
    name: str,
    folder: Path,
    made: dict[str, Manifest],
    progress: Callable[[int], None],
) -> Manifest:
    number = layout.child_generation(name)
    if number is None and not layout.is_combined(name):
        raise InvalidInputError(f"'{name}' was not made by this evolution but given to it; `cycleqd export` copies it")
    child = None if number is None else find_child(store, name, number)
    inputs = need_result(store, layout.stage(name, "make"))["inputs"] if child is None else {}
    parents = [ModelRef.from_json(ref) for ref in inputs["models"]] if child is None else list(child.parents)
    if config.in_span:
        return _make_core(store, config, child, parents, inputs, folder, made, name)

    def opened(ref: ModelRef) -> Checkpoint:
        return _local(folder / ref.id, made[ref.id]) if ref.id in made else open_model(store, ref)

    from cycleqd.weights.aggregate import combine
    from cycleqd.weights.merge import merge

    sink, shard_size = LocalSink(folder / name), size_in_bytes(config.models.shard_size)
    base = open_model(store, ModelRef.from_json(inputs["base"]) if child is None else child.base)
    models = [opened(parent) for parent in parents]
    if child is None:
        return combine(base, models, inputs["coefficients"], sink, shard_size=shard_size, progress=progress)
    crossover, mutation = _drawn(config, child)
    return merge(base, models, crossover, sink, mutation=mutation, shard_size=shard_size, progress=progress)


def _make_core(
    store: Store,
    config: Config,
    child: Child | None,
    parents: Sequence[ModelRef],
    inputs: JSON,
    folder: Path,
    made: Mapping[str, Manifest],
    name: str,
) -> Manifest:
    from cycleqd.storage.cores import load_core
    from cycleqd.storage.making import shapes_for
    from cycleqd.weights import span

    def opened(ref: ModelRef) -> span.Core:
        file = folder / ref.id / CORE
        return span.Core.from_bytes(file.read_bytes(), str(file)) if ref.id in made else load_core(store, ref)

    models = [opened(parent) for parent in parents]
    if child is None:
        core = span.combine(models, inputs["coefficients"])
    else:
        crossover, mutation = _drawn(config, child)
        core = span.mutate(span.merge(models, crossover), mutation, shapes=shapes_for(store, child, mutation))
    data = core.to_bytes()
    writer = LocalSink(folder / name).create(CORE, len(data))
    writer.write(data)
    writer.close()
    return Manifest.of_core(data)


def _drawn(config: Config, child: Child) -> tuple[Drawn[Crossover], Drawn[Mutation]]:
    method = config.method
    return Drawn(method.crossover, child.crossover), Drawn(method.mutation, child.mutation)


def _local(folder: Path, recorded: Manifest) -> Checkpoint:
    return open_checkpoint(LocalSource(folder, recorded.digests()))
