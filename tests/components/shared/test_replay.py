"""Collected models are rebuilt from their lineage, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.shared import layout
from components.shared.evolution import manifest
from components.shared.replay import missing_ancestors, recipe_of, replay
from components.shared.store.objects import Store
from cycleqd.errors import IntegrityError
from cycleqd.weights.local import LocalSource
from tests.evolution import Evolution


def grandchild(store: Store) -> tuple[str, str]:
    """A child with a child among its parents, and that parent."""
    for generation in (2, 1):
        for index in range(2):
            child = f"g{generation:06d}-c{index:02d}"
            for parent in recipe_of(store, child).parents:
                if parent.id.startswith("g"):
                    return child, parent.id
    raise AssertionError("the example needs a grandchild")


def test_a_model_and_its_collected_ancestors_are_rebuilt(grown: Evolution, tmp_path: Path) -> None:
    store = grown.store
    child, parent = grandchild(store)
    taken = {}
    for model in (child, parent):
        taken |= {key: store.get(key) for key in store.list(layout.checkpoint(model))}
        store.delete_prefix(layout.checkpoint(model))
    try:
        order = [recipe.model for recipe in missing_ancestors(store, child)]
        assert order.index(parent) < order.index(child)
        sentences: list[str] = []
        found = replay(store, child, tmp_path / "model", report=sentences.append)
    finally:
        for key, data in taken.items():
            store.put(key, data)
    assert found.digest == manifest(store, child).digest
    assert LocalSource(tmp_path / "model").files() == {name: file.size for name, file in found.files.items()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("replay")] == []
    assert not [sentence for sentence in sentences if "made with another" in sentence]


def test_what_is_stored_is_copied_and_verified(grown: Evolution, tmp_path: Path) -> None:
    for model in ("expert-b", "final"):
        replay(grown.store, model, tmp_path / model, report=print)
        for key in grown.store.list(layout.checkpoint(model)):
            assert (tmp_path / model / key.rsplit("/", 1)[1]).read_bytes() == grown.store.get(key)


def test_the_final_model_is_rebuilt(grown: Evolution, tmp_path: Path) -> None:
    store = grown.store
    key = f"{layout.checkpoint('final')}/config.json"
    config = store.get(key)
    store.delete([key])
    try:
        assert replay(store, "final", tmp_path / "final", report=print).digest == manifest(store, "final").digest
    finally:
        store.put(key, config)


def test_another_machine_is_named(grown: Evolution, tmp_path: Path) -> None:
    store = grown.store
    child = "g000000-c00"
    run = store.get_json(layout.run(layout.stage(child, "merge")))
    weights = {key: store.get(key) for key in store.list(layout.checkpoint(child))}
    store.delete_prefix(layout.checkpoint(child))
    store.put_json(layout.run(layout.stage(child, "merge")), {**run, "instruction_sets": ["sve"], "device": "cuda"})
    sentences: list[str] = []
    try:
        replay(store, child, tmp_path / "model", report=sentences.append)
    finally:
        store.put_json(layout.run(layout.stage(child, "merge")), run)
        for key, data in weights.items():
            store.put(key, data)
    assert any(f"{child} was made with another instruction sets (sve; here" in sentence for sentence in sentences)
    assert f"{child} was made with another device (cuda; here cpu)" in sentences


def test_a_lost_expert_cannot_be_rebuilt(grown: Evolution, tmp_path: Path) -> None:
    store = grown.store
    key = f"{layout.checkpoint('expert-c')}/config.json"
    config = store.get(key)
    store.delete([key])
    try:
        with pytest.raises(IntegrityError, match="'expert-c' has no lineage"):
            replay(store, "expert-c", tmp_path / "model", report=print)
    finally:
        store.put(key, config)
