"""The bytes that are known before an evolution is seeded, against those of what seeding makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.run.sizes import Sizes, sizes
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, opened_basis
from cycleqd.storage.evolution import manifest, model_ref
from cycleqd.storage.frozen import adopt
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store
from cycleqd.storage.staging import open_inputs
from cycleqd.weights.headers import read_header
from tests.evolution import EXPERTS, Evolution, write_adapters

Make = Callable[..., Evolution]


def expected(made: Evolution) -> Sizes:
    config = adopt(made.store, made.config)
    return sizes(config, open_inputs(made.store.client, config))


def tensors(store: Store, model: str) -> int:
    """Bytes of a folder's tensors: its safetensors files without their headers."""
    files = manifest(store, model)
    folder = source(store, layout.checkpoint(model), files)
    found = (read_header(folder, name, entry.size) for name, entry in files.files.items() if "safetensors" in name)
    return sum(tensor.nbytes for header in found for tensor in header)


def test_adapters_as_they_come(evolution: Make, tiny_models: Path, tmp_path: Path) -> None:
    folder = write_adapters(tiny_models, tmp_path)
    made = evolution("sizes-given", models={"experts": {name: {"path": str(folder / name)} for name in EXPERTS}})
    told = expected(made)
    made.seed()
    made.basis()
    store = made.store
    for core in cores(store, [model_ref(store, f"expert-{name}") for name in EXPERTS]):
        assert sum(matrix.nbytes for matrix in core.matrices.values()) == told.child
    assert told.seeded == tensors(store, layout.BASIS)
    models = [manifest(store, model) for model in ("base", *(f"source-{name}" for name in EXPERTS))]
    assert told.given == sum(entry.size for files in models for entry in files.files.values())


def test_extracted_adapters(evolution: Make) -> None:
    made = evolution("sizes-extracted", models={"rank": 8})
    told = expected(made)
    made.seed()
    made.basis()
    store = made.store
    with opened_basis(store, Place()) as basis:
        assert sum(4 * a * b for a, b in basis.shapes.values()) == told.child
        widths = {min(shape) for shape in basis.shapes.values()}
        sides = sum(q.shape[0] + p.shape[0] for q, p in basis.tensors.values())
    assert told.adapter == 2 * sides * max(widths)
    assert told.seeded == tensors(store, layout.BASIS) + sum(tensors(store, f"adapter-{name}") for name in EXPERTS)


def test_what_no_adapter_carries_is_swapped_in_as_a_full_checkpoint(evolution: Make) -> None:
    made = evolution("sizes-kept", models={"rank": 8, "keep_dense": True})
    told, without = expected(made), expected(evolution("sizes-left-out", models={"rank": 8}))
    assert told.child == without.child + 4 * 3 * (5 + 2)  # norms; embedding and head: a number a full expert
    assert (told.given, told.seeded) == (without.given, without.seeded) and told.adapter == without.swapped == 0
    made.seed()
    made.basis()
    (core,) = cores(made.store, [model_ref(made.store, "expert-a")])
    assert sum(c.nbytes for c in (*core.matrices.values(), *core.dense.values())) == told.child
    assert told.swapped == manifest(made.store, "base").size


@pytest.mark.parametrize("model", ["base", "a"])
def test_dense_checkpoints(evolution: Make, tiny_models: Path, model: str) -> None:
    told = expected(evolution("sizes-dense"))
    assert told.seeded == told.adapter == 0
    assert told.child == told.largest >= (tiny_models / model / "model.safetensors").stat().st_size
    assert told.given > 3.9 * told.child
