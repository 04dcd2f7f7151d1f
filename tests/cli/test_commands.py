"""Every command that looks at an evolution, on a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.run.replay import stored
from cycleqd.search import state as states
from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, manifest
from tests.run.conftest import Finished

Call = Callable[..., Any]
pytestmark = pytest.mark.timeout(1800)  # the evolution that these look at is run first, a minute on an idle machine


def test_run_reaches_the_end_and_says_what_it_found(finished: Finished) -> None:
    state = current(finished.session.store)[1]
    assert finished.summary["generations"] == state.generation == 2
    assert finished.summary["evaluations"] == len(state.children) == 2
    best = states.best_average(state)
    assert finished.summary["best_average"]["model"] == best.model.id
    for task, line in state.bests.items():
        assert finished.summary["best_per_task"][task] == {"model": line.model.id, "score": line.scores[task]}


def test_status_of_a_complete_evolution(call: Call, finished: Finished) -> None:
    facts = call("status")
    assert facts["next"] is None and facts["in_flight"] == [] and facts["generations"] == 2
    assert facts["objects"] == len(finished.session.store.list(""))


def test_archive_shows_every_elite(call: Call, text: Call, finished: Finished) -> None:
    state = current(finished.session.store)[1]
    shown = call("archive")
    assert [len(a["elites"]) for a in shown["archives"]] == [len(a.elites) for a in state.archives]
    assert shown["grid"]["one"]["bins"] == 4
    drawn = text("archive")
    for archive in state.archives:
        assert f"quality {archive.quality}: {len(archive.elites)} of {archive.grid.cells} cells" in drawn
        best = max(elite.scores[archive.quality] for elite in archive.elites.values())
        assert f"{100 * best:.0f}" in drawn
    assert call("archive", "--generation", "0")["generation"] == 0


def test_models_are_sorted(call: Call) -> None:
    rows = call("models", "--sort", "two", "--limit", "0")
    children, built = {"g000000-c00", "g000001-c00"}, {"naive", "aggregated", "final", "lambda-0.3", "lambda-0.6"}
    assert {"base", "expert-red", "expert-blue", *children, *built} == {row["id"] for row in rows}
    scores = [row["scores"]["two"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [row["id"] for row in call("models", "--sort", "id", "--ascending", "--limit", "2")] == [
        "aggregated",
        "base",
    ]


def test_lineage_ends_at_the_experts(call: Call, text: Call) -> None:
    family = call("lineage", "final")["models"]
    assert sum(part["weight"] for part in family["final"]["parents"]) == pytest.approx(1)
    founders = {name for name, member in family.items() if not member["parents"]}
    assert founders <= {"expert-red", "expert-blue"} and founders
    child = call("lineage", "g000000-c00")["models"]["g000000-c00"]
    assert child["mutation"]["kind"] == "svd" and len(child["parents"]) == 2
    assert "expert-red" in text("lineage", "g000000-c00")


def test_samples_agree_with_the_score(call: Call, finished: Finished) -> None:
    found = call("samples", "expert-red", "one", "--limit", "0")
    experts = {expert.model.id: expert.scores for expert in current(finished.session.store)[1].experts}
    score = experts["expert-red"]["one"]
    assert sum(sample["outcome"] == "passed" for sample in found) / len(found) == pytest.approx(score)
    wrong = call("samples", "expert-red", "one", "--outcome", "wrong", "--limit", "1")
    assert len(wrong) <= 1 and all(sample["outcome"] == "wrong" for sample in wrong)
    assert len(call("samples", "final", "two", "--split", "test", "--limit", "0")) == 12


def test_samples_tell_the_seconds_as_long_as_they_are_known(call: Call, text: Call, finished: Finished) -> None:
    store, key = finished.session.store, layout.run(layout.evaluation("expert-red", "one", "search"))
    run = store.get(key)
    seconds = json.loads(run)["sample_seconds"]
    found = call("samples", "expert-red", "one", "--limit", "0")
    assert {sample["id"]: sample["seconds"] for sample in found} == seconds
    first = found[0]
    shown = f"── {first['id']} ── {first['outcome']}: {first['reason']} ({first['seconds']:.2f} s)"
    assert shown in text("samples", "expert-red", "one")
    try:
        store.delete([key])
        assert call("samples", "expert-red", "one", "--limit", "1") == [
            {name: value for name, value in first.items() if name != "seconds"}
        ]
        assert " s)" not in text("samples", "expert-red", "one", "--limit", "1")
    finally:
        store.put(key, run)


@pytest.mark.parametrize("model", ["g000000-c00", "g000001-c00", "final", "naive"])
def test_replay_gives_the_recorded_bytes(model: str, call: Call, finished: Finished, tmp_path: Path) -> None:
    facts = call("replay", model, "--folder", str(tmp_path / "rebuilt"))
    recorded = manifest(finished.session.store, model)
    assert facts["same"] and facts["digest"] == recorded.digest and facts["rebuilt"][-1] == model
    assert {file.name for file in (tmp_path / "rebuilt").iterdir()} == set(recorded.files)


def test_a_collected_model_is_rebuilt_with_its_collected_parents(call: Call, finished: Finished) -> None:
    store, name = finished.session.store, "g000000-c00"
    copies = {key: store.get(key) for key in store.list(layout.checkpoint(name))}
    store.delete(copies)
    try:
        assert not stored(store, name)
        assert call("replay", name)["rebuilt"] == [name]
        result = CliRunner().invoke(app, ["export", name, "unused", "-c", str(finished.path)])
        assert result.exit_code == 2 and "cycleqd replay" in result.stderr
    finally:
        for key, data in copies.items():
            store.put(key, data)


def test_an_exported_model_opens_in_transformers(call: Call, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = call("export", "final", str(tmp_path / "final"))
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "final").iterdir())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "final").chat_template


def test_logs_of_a_run_on_this_machine(call: Call, text: Call, finished: Finished) -> None:
    tasks = {log["task"]: log for log in call("logs", "generation-000001", "--lines", "3")}
    assert {"select-parents", "merge", "update-archives"} <= set(tasks)
    assert tasks["merge"]["child"] == "g000001-c00" and tasks["merge"]["phase"] == "Succeeded"
    assert len(tasks["merge"]["log"].splitlines()) <= 3
    shown = text("logs", "seeding", "--task", "seed")
    assert shown.startswith("=== seed · Succeeded · 0001-seed\n") and shown.count("===") == 1
    note = Path(load(finished.path).place.folder) / "runs/world/seeding/0001-seed.json"
    before = note.read_text()
    try:
        note.write_text(before.replace("Succeeded", "Failed"))
        shown = text("logs", "seeding")
        assert shown.count("===") == 1 and "=== seed · Failed" in shown and "update-archives" in shown.splitlines()[-1]
    finally:
        note.write_text(before)


def test_compare_puts_evolutions_side_by_side(call: Call, text: Call, finished: Finished) -> None:
    facts = call("compare", "world")["world"]
    assert facts["generations"] == 2 and facts["mutation"].startswith("svd")
    assert facts["best_average"] == finished.summary["measures"]["best_average"]
    assert {"final/test average", "naive/search average"} <= set(facts)
    assert "best_average" in text("compare", "world", "world")


def test_report_is_written(call: Call, tmp_path: Path) -> None:
    page = Path(call("report", "--folder", str(tmp_path))["page"])
    assert page.parent == tmp_path and "CycleQD, " in page.read_text()  # the final model's row


def test_compile_writes_what_a_cluster_takes(call: Call, tmp_path: Path) -> None:
    from kfp.components import load_component_from_file

    files = call("compile", str(tmp_path))
    names = {kind: load_component_from_file(file).name for kind, file in files.items()}
    assert names == {kind: f"cycleqd-{kind}" for kind in ("seeding", "generation", "finalising")}


def test_validate_counts_samples_and_estimates_the_cost(call: Call) -> None:
    found = call("validate")
    assert found["problems"] == []
    assert found["samples"] == {task: {"search": 12, "test": 12} for task in ("one", "two")}
    assert found["estimate"]["models"] == 5 and found["estimate"]["seconds"] > 0
    assert any("standard error" in warning for warning in found["warnings"])


def test_running_again_changes_no_byte(finished: Finished) -> None:
    store = finished.session.store
    before = {key: store.get(key) for key in store.list("")}
    result = CliRunner().invoke(app, ["run", "-c", str(finished.path), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout) == finished.summary
    assert {key: store.get(key) for key in store.list("")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lineage", "g000099-c00"], "no model 'g000099-c00'"),
        (["logs", "generation-000009"], "there are: finalising, generation-000000, generation-000001, seeding"),
        (["logs", "seeding", "--task", "merge"], "run seeding has no logs of 'merge'; it has: evaluate"),
        (["lineage", "nonsense"], "not a model id"),
        (["samples", "final", "three"], "no task 'three'"),
        (["samples", "final", "one", "--split", "all"], "--split is 'all'"),
        (
            ["samples", "final", "one", "--outcome", "failed"],
            "--outcome is 'failed'; it is one of passed, wrong, error, time-out, format",
        ),
        (["models", "--sort", "beauty"], "--sort beauty"),
        (["archive", "--generation", "9"], "no snapshot 9"),
        (["compare", "elsewhere"], "no evolution 'elsewhere'"),
        (["export", "final", "out", "--merged", "--rank", "4"], "--rank cuts an adapter, and --merged writes none"),
        (["replay", "expert-red"], "was given to the evolution"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments: list[str], said: str, finished: Finished) -> None:
    result = CliRunner().invoke(app, [*arguments, "-c", str(finished.path)])
    assert result.exit_code == 2
    assert said in result.stderr and "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_changed_configuration_is_refused(finished: Finished, tmp_path: Path) -> None:
    changed = finished.path.with_name("changed.yaml")
    changed.write_text(finished.path.read_text().replace("seed: 7", "seed: 8"))
    result = CliRunner().invoke(app, ["run", "-c", str(changed)])
    assert result.exit_code == 4 and "another configuration" in result.stderr and "seed" in result.stderr
