"""Bars: on a terminal, on standard error, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cycleqd.cli import progress
from cycleqd.cli.display import Display
from tests.pipelines.configs import two_tasks


def drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """What the bars write from now on."""
    written = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=written, force_terminal=terminal, width=120))
    return written


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = drawn(monkeypatch, terminal)
    with progress.counting("exporting final", 200) as advance:
        advance(50)
    with progress.counting("reading", None) as advance:
        advance(1)
    with progress.parts("checking", 2) as begin:
        begin("task 'one'")
        begin("the models")
    text = written.getvalue()
    if terminal:
        assert "exporting final" in text and " 25%" in text and "reading" in text
        assert "checking the models" in text and "1/2" in text
    else:
        assert text.strip() == ""


def test_seeding_is_seen_to_move() -> None:
    display = Display(two_tasks(), lambda: None)

    def shown() -> str:
        return display.progress.tasks[0].description

    display.begins("seeding")
    assert shown() == "seeding: starting (0 done)"
    for name, event in (
        ("seed", "started"),
        ("seed-driver", "done"),
        ("seed", "done"),
        ("evaluate-models", "started"),
        ("evaluate-models-2", "started"),
        ("evaluate-models-2", "done"),
        ("evaluate-models-2", "done"),  # a cluster tells it with every look
    ):
        display.task(name, event)
    assert shown() == "seeding: evaluating (2 done)"
    display.begins("seeding")
    assert shown() == "seeding: evaluating (2 done)"
    display.begins("generation-000000")
    assert shown() == "generation-000000"
    display.task("merge", "started")
    assert shown() == "merging"
    display.task("merge-and-mutate", "started")
    assert shown() == "merging and mutating"
