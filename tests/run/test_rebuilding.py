"""A collected model whose ancestors were collected too is rebuilt from its lineage, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd.errors import IntegrityError
from cycleqd.run.replay import difference, rebuild, to_rebuild, weights_size
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest
from cycleqd.storage.family import family
from cycleqd.storage.objects import Store
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSource
from tests.evolution import Evolution


def grandchild(store: Store) -> tuple[str, str]:
    """A child with a child among its parents, and that parent."""
    for generation in (2, 1):
        for index in range(2):
            child = f"g{generation:06d}-c{index:02d}"
            for parent, _ in family(store, [child])[child].parents:
                if layout.child_generation(parent) is not None:
                    return child, parent
    raise AssertionError("the example needs a grandchild")


def test_a_model_and_its_collected_ancestors_are_rebuilt(grown: Evolution, tmp_path: Path) -> None:
    store = grown.store
    child, parent = grandchild(store)
    taken = {key: store.get(key) for model in (child, parent) for key in store.list(layout.checkpoint(model))}
    store.delete(taken)
    try:
        order = to_rebuild(store, child, family(store, [child]))
        assert order.index(parent) < order.index(child) == len(order) - 1
        done: list[int] = []
        found = rebuild(store, grown.config, order, tmp_path, done.append)
        size = weights_size(store, order)
    finally:
        for key, data in taken.items():
            store.put(key, data)
    assert found.digest == manifest(store, child).digest
    weights = sum(open_checkpoint(LocalSource(tmp_path / name)).nbytes for name in order)
    assert sum(done) == weights and weights < size < 1.2 * weights, "headers are all that is not counted"
    assert len(done) > 2 * len(order), "a step a tensor"
    assert LocalSource(tmp_path / child).files() == {name: file.size for name, file in found.files.items()}


def test_another_machine_and_other_bytes_are_named(grown: Evolution, tmp_path: Path) -> None:
    store, child = grown.store, "g000000-c00"
    key = layout.run(layout.stage(child, "merge"))
    run = store.get(key)
    assert difference(store, child) == ""
    try:
        store.put_json(key, {**store.get_json(key), "instruction_sets": ["sve"]})
        assert "instruction_sets ['sve'] there" in difference(store, child)
        with pytest.raises(IntegrityError, match=r"rebuilding 'g000000-c00' gave digest .* \['sve'\] there"):
            rebuild(store, grown.config.model_copy(update={"models": _smaller(grown)}), [child], tmp_path, print)
    finally:
        store.put(key, run)


def _smaller(grown: Evolution) -> object:
    """Other shards: other files, so another digest."""
    return grown.config.models.model_copy(update={"shard_size": "50KB"})
