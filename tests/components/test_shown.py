"""What tasks show in Kubeflow, in KFP's own artifacts, of a finished evolution; and that showing fails nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components import shown
from cycleqd.report import brief
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest, need_plan
from cycleqd.storage.results import need_result
from tests.evolution import Evolution

CHILD = "g000001-c00"
ITEM = json.dumps({"generation": 1, "child": CHILD})


def page(kind: type, folder: Path) -> Any:
    """An artifact of KFP's as it hands it to a task."""
    made = kind()
    made.path = str(folder / kind.__name__)
    return made


def test_scores_are_shown_with_their_standard_errors(grown: Evolution, tmp_path: Path) -> None:
    metrics = page(dsl.Metrics, tmp_path)
    shown.scores(metrics, grown.name, json.dumps(["base", CHILD]), '["one", "two"]', "search")
    assert len(metrics.metadata) == 8
    outputs = need_result(grown.store, layout.evaluation(CHILD, "one", "search"))["outputs"]
    assert metrics.metadata[f"{CHILD} one"] == outputs["score"]
    assert metrics.metadata[f"{CHILD} one standard error"] == outputs["standard_error"]


def test_a_generation_is_shown_with_parents_scores_and_archives(grown: Evolution, tmp_path: Path) -> None:
    heat_maps, summary, making = page(dsl.HTML, tmp_path), page(dsl.Markdown, tmp_path), dsl.Markdown()
    making.path = str(tmp_path / "making")
    shown.update(heat_maps, summary, grown.name, 1)
    shown.making(making, grown.name, [ITEM])
    child = need_plan(grown.store, 1).children[0]
    parents = ", ".join(f"{ref.id} ({omega:.3f})" for ref, omega in zip(child.parents, child.omega, strict=True))
    (row,) = [line for line in Path(summary.path).read_text().splitlines() if line.startswith(f"| {CHILD} |")]
    outputs = need_result(grown.store, layout.evaluation(CHILD, "one", "search"))["outputs"]
    entered = need_result(grown.store, layout.update(1))["outputs"]["entered"][CHILD]
    assert f" | {parents} | " in row and f" {100 * outputs['score']:.1f} ± " in row
    assert row.endswith(f" | {', '.join(entered) or 'none'} |")
    assert f"**{CHILD}**: {parents}; " in Path(making.path).read_text()
    html = Path(heat_maps.path).read_text()
    assert "generation 000001" in html and "data:image/png;base64," in html and "http" not in html


def test_seeding_is_shown_as_the_models_that_were_offered(grown: Evolution) -> None:
    text = brief.generation(grown.store, -1)
    assert "seeding" in text and all(f"| expert-{name} |" in text for name in ("a", "b", "c"))


def test_the_final_model_carries_its_address_beside_kfps_own(grown: Evolution, tmp_path: Path) -> None:
    model = page(dsl.Model, tmp_path)
    uri = model.uri
    shown.model(model, grown.name, chosen=True)
    assert model.uri == uri
    assert model.metadata["address"] == grown.store.url("models/final/checkpoint")
    assert model.metadata["sha256"] == manifest(grown.store, "final").digest
    assert json.loads(Path(model.path).read_text()) == model.metadata


def test_the_report_is_shown_unless_it_is_too_large(
    grown: Evolution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = page(dsl.HTML, tmp_path)
    shown.report(report, grown.name)
    assert "data:image/png;base64," in Path(report.path).read_text()
    monkeypatch.setattr(brief, "LARGEST", 1000)
    shown.report(report, grown.name)
    assert "is too large to be shown" in Path(report.path).read_text()


def test_what_cannot_be_shown_is_a_warning_and_fails_nothing(
    grown: Evolution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, summary = page(dsl.Metrics, tmp_path), page(dsl.Markdown, tmp_path)
    shown.scores(metrics, grown.name, '["g000099-c00"]', '["one"]', "search")
    shown.update(None, summary, grown.name, 99)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [line.split(" cannot be shown")[0] for line in warnings] == ["warning: the scores", "warning: the summary"]
    assert metrics.metadata == {} and not Path(summary.path).exists()


def test_where_nobody_looks_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "_shown", None)
    shown.scores(None, "x", "[]", "[]", "search")
    shown.making(None, "x", [])
    shown.update(None, None, "x", 0)
    shown.model(None, "x")
    shown.report(None, "x")
