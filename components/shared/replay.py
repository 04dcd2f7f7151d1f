"""Rebuilding a model whose checkpoint was collected, from its recorded lineage, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.shared import layout
from components.shared.evolution import find_child, load_config, manifest, size_in_bytes
from components.shared.models import mutation_spec, source
from components.shared.stage import machine, need_result
from components.shared.store.objects import Store
from cycleqd.errors import IntegrityError
from cycleqd.records import ModelRef, Mutation
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.manifest import Manifest

Report = Callable[[str], None]
"""Takes one sentence: what is being rebuilt, or what may make its bytes differ."""


@dataclass(frozen=True)
class Recipe:
    """How a model was made: child (crossover and mutation) or aggregate (coefficients, no mutation)."""

    model: str
    base: ModelRef
    parents: tuple[ModelRef, ...]
    weights: tuple[float, ...]
    mutation: Mutation | None


def replay(
    store: Store, model: str, folder: Path, *, threads: int = 1, device: str = "cpu", report: Report
) -> Manifest:
    """Write a model's checkpoint into `folder`, rebuilding whatever ancestors are gone; its manifest.

    Base and experts are copied. Every rebuilt checkpoint must have the digest of its record: IntegrityError otherwise,
    and `report` has named before what differs on this machine from the one that made it (CPU, libraries, device).
    """
    steps = missing_ancestors(store, model)
    shard_size = size_in_bytes(load_config(store).models.shard_size)
    with tempfile.TemporaryDirectory(prefix="replay-", dir=folder.parent) as scratch:
        built: dict[str, Path] = {}
        for index, recipe in enumerate(steps):
            last = recipe.model == model
            target = folder if last else Path(scratch) / recipe.model
            warn_about_machine(store, recipe.model, device, report)
            report(f"building {recipe.model} from {', '.join(parent.id for parent in recipe.parents)}")
            found = _build(store, recipe, target, built, shard_size, threads, device)
            _require(store, recipe.model, found, target)
            built[recipe.model] = target
            for name in [n for n in built if not any(p.id == n for r in steps[index + 1 :] for p in r.parents)]:
                if built[name] != folder:
                    shutil.rmtree(built.pop(name))
    if not steps:
        _copy(store, model, folder)
    return manifest(store, model)


def missing_ancestors(store: Store, model: str) -> list[Recipe]:
    """What has to be built for a model, ancestors first; empty when its own checkpoint is in S3."""
    order: dict[str, Recipe] = {}

    def visit(name: str) -> None:
        if name in order or is_stored(store, name):
            return
        recipe = recipe_of(store, name)
        for parent in recipe.parents:
            visit(parent.id)
        order[name] = recipe

    visit(model)
    return list(order.values())


def is_stored(store: Store, model: str) -> bool:
    """Whether all files of a model's checkpoint are in S3, with their recorded sizes."""
    prefix = layout.checkpoint(model)
    sizes = {key[len(prefix) + 1 :]: size for key, size in store.list(prefix).items()}
    return all(sizes.get(name) == entry.size for name, entry in manifest(store, model).files.items())


def recipe_of(store: Store, model: str) -> Recipe:
    """The recorded lineage of a child or an aggregate. Raises IntegrityError for base and experts: they have none."""
    generation = layout.child_generation(model)
    if generation is not None:
        child = find_child(store, model, generation)
        return Recipe(model, child.base, child.parents, child.omega, child.mutation)
    inputs = need_result(store, layout.stage(model, "make"))["inputs"]
    if "coefficients" not in inputs:
        raise IntegrityError(
            f"{store.url(layout.checkpoint(model))} is incomplete and '{model}' has no lineage to rebuild it from; copy"
            " it there again"
        )
    parents = tuple(ModelRef.from_json(parent) for parent in inputs["models"])
    return Recipe(model, ModelRef.from_json(inputs["base"]), parents, tuple(inputs["coefficients"]), None)


def warn_about_machine(store: Store, model: str, device: str, report: Report) -> None:
    """Report where this machine is not as the one that made a model: the bytes may then differ."""
    folder = next(f for f in layout.makers(model) if store.exists(layout.result(f)))
    then, now = store.get_json(layout.run(folder)), {**machine(), "device": device}
    for key, value in now.items():
        if key in then and then[key] != value:
            report(f"{model} was made with another {key.replace('_', ' ')} ({_short(then[key])}; here {_short(value)})")


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _build(
    store: Store, recipe: Recipe, target: Path, built: Mapping[str, Path], shard_size: int, threads: int, device: str
) -> Manifest:
    from cycleqd.weights.aggregate import combine
    from cycleqd.weights.merge import merge

    base, parents = _open(store, recipe.base, built), [_open(store, parent, built) for parent in recipe.parents]
    sink = LocalSink(target)
    if recipe.mutation is None:
        return combine(base, parents, recipe.weights, sink, threads=threads, shard_size=shard_size)
    return merge(
        base,
        parents,
        recipe.weights,
        sink,
        mutation=mutation_spec(recipe.mutation),
        seed=recipe.mutation.seed,
        threads=threads,
        device=device,
        shard_size=shard_size,
    )


def _open(store: Store, model: ModelRef, built: Mapping[str, Path]) -> Checkpoint:
    recorded = manifest(store, model.id)
    if recorded.digest != model.digest:
        raise IntegrityError(f"'{model.id}' has digest {recorded.digest}, but its child was made from {model.digest}")
    if model.id in built:
        return open_checkpoint(LocalSource(built[model.id], recorded.digests()))
    return open_checkpoint(source(store, layout.checkpoint(model.id), recorded))


def _require(store: Store, model: str, found: Manifest, target: Path) -> None:
    wanted = manifest(store, model)
    differing: Sequence[str] = [name for name in wanted.files if wanted.files[name] != found.files.get(name)]
    if found.digest != wanted.digest:
        raise IntegrityError(
            f"the rebuilt '{model}' in {target} has digest {found.digest}, recorded was {wanted.digest} (different:"
            f" {', '.join(differing)}); rebuild it with the CPU, libraries and device that its run.json names"
        )


def _copy(store: Store, model: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in manifest(store, model).files.items():
        store.get_file(f"{layout.checkpoint(model)}/{name}", folder / name, entry.sha256)
