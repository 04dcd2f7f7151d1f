"""How far stages are, in their logs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cycleqd import progress
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest
from cycleqd.storage.models import source
from cycleqd.weights.checkpoint import open_checkpoint
from tests.evolution import Evolution


def test_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    advance = progress.counting("a on mbpp (search)", "samples judged", 1378)
    advance(1)
    assert capsys.readouterr().err == "", "what is quick says nothing"
    monkeypatch.setattr(progress, "SECONDS", 0)
    advance(1199)
    assert capsys.readouterr() == ("", "a on mbpp (search): 1,200 of 1,378 samples judged\n")


def test_stages_tell_how_far_they_are(
    evolution: Callable[..., Evolution], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    made = evolution(place={"fused": False})
    made.seeding()
    said = capsys.readouterr().err.splitlines()
    assert said.count("3 evaluations: 24 of 24 samples judged") == 4, "a model's tasks are judged together"
    for task in made.config.search_tasks:
        assert f"expert-a on {task} (search): 8 of 8 replies of round 1" in said
    (child,) = made.generation()
    made.aggregate()
    said = capsys.readouterr().err.splitlines()
    stored = source(made.store, layout.checkpoint("base"), manifest(made.store, "base"))
    size = open_checkpoint(stored).nbytes
    for line in (f"{child}: {size:,} of {size:,} bytes merged", f"{child}: {size:,} of {size:,} bytes mutated"):
        assert line in said
    assert f"aggregated: {size:,} of {size:,} bytes combined" in said
