"""Cores as the LoRA adapters that engines and users load: B A = Q C Pᵀ, made where they are used, never stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage.cores import load_core, opened_basis
from cycleqd.storage.evolution import model_ref
from cycleqd.storage.models import open_model
from cycleqd.storage.objects import Store
from cycleqd.weights.local import LocalSink
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.plain_adapter import write_adapter
from cycleqd.weights.span import low_rank
from cycleqd.weights.tensors import DTYPES


@contextmanager
def adapter_folders(
    store: Store, place: Place, models: Mapping[str, Manifest], dtype: str, scratch: Path
) -> Iterator[Mapping[str, Path]]:
    """A PEFT folder for each model that is a core, named by the core's digest.

    Args:
        store: The evolution.
        place: Names the cache's size.
        models: The files of models that are cores, by id.
        dtype: What B and A are rounded to, as torch names it; "auto": the dtype that the base is stored in.
        scratch: Where the folders are made.
    """
    base = model_ref(store, "base")
    with opened_basis(store, place) as basis:
        folders: dict[str, Path] = {}
        kept = {tensor.dtype for name, tensor in open_model(store, base).tensors.items() if name in basis.tensors}
        rounding = DTYPES[kept.pop()] if dtype == "auto" else getattr(torch, dtype)
        for model, recorded in models.items():
            folder = scratch / recorded.digest
            if not folder.exists():  # two models may be equal
                core = load_core(store, ModelRef(model, recorded.digest))
                write_adapter(LocalSink(folder), low_rank(basis, core), base.digest, rounding)
            folders[model] = folder
        yield folders
