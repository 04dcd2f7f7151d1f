"""A stage's inputs: from the machine's cache where they are used again, else streamed, with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.storage.evolution import need_plan
from cycleqd.storage.models import opened
from cycleqd.storage.settings import Settings
from tests.evolution import Evolution


def cached() -> set[str]:
    return {path.name for path in Path(os.environ["CYCLEQD_CACHE"]).glob("*") if path.is_dir()}


def test_base_and_experts_come_from_the_cache_and_children_when_they_are_there(
    evolution: Callable[..., Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evo = evolution()
    evo.seeding()
    (item,) = evo.select(0)
    child = need_plan(evo.store, 0).children[0]
    inputs, place = [child.base, *child.parents], evo.config.place
    monkeypatch.setenv("CYCLEQD_CACHE", str(tmp_path / "new"))
    evo.merge(item)
    assert cached() == {model.digest for model in inputs}
    with opened(evo.store, place, inputs) as models:
        assert [model.location for model in models] == [str(tmp_path / "new" / model.digest) for model in inputs]

    small = place.model_copy(update={"cache_size": "1KB"})
    monkeypatch.setenv("CYCLEQD_CACHE", str(tmp_path / "small"))
    with opened(evo.store, small, inputs) as models:
        assert all(model.location.startswith("s3://") for model in models) and not cached()

    monkeypatch.setenv("CYCLEQD_CACHE", str(Settings.from_environment().scratch / "pod"))
    with opened(evo.store, place, inputs) as models:  # nothing is fetched that goes with the task
        assert all(model.location.startswith("s3://") for model in models) and not cached()
