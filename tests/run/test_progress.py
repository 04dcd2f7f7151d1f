"""Bars: on a terminal, on standard error, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cycleqd.cli import progress
from cycleqd.cli.display import Display
from cycleqd.run.estimate import measured
from cycleqd.run.remaining import generations_left, seconds_left
from cycleqd.storage import layout
from cycleqd.storage.evolution import current
from tests.evolution import Evolution
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
    display = Display(two_tasks(), lambda: None, lambda state: None)

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


def test_the_time_left_is_what_was_estimated_less_what_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    display, now = Display(two_tasks(), lambda: None, lambda state: None), [100.0]
    monkeypatch.setattr("cycleqd.cli.display.time.monotonic", lambda: now[0])

    def shown() -> str:
        return display.time.render(display.progress.tasks[0]).plain

    assert shown() == "time left: known after the first generation"
    display.time.tell(600.0)
    now[0] += 200
    assert shown() == "about 6 min 40 s left"
    now[0] += 900
    assert shown() == "about 0 s left"


def test_the_time_left_is_by_finished_stages(grown: Evolution) -> None:
    """Generations by whole ones, whose children took 2, 3 and 10 s; finalising by its evaluations and merges."""
    store, config = grown.store, grown.config
    state = current(store)[1]
    more = config.model_copy(update={"method": config.method.model_copy(update={"generations": 7})})
    assert generations_left(more, state) == 4
    kept: dict[str, bytes] = {}
    try:
        for number, seconds in enumerate((2, 3, 10)):
            for key in (key for key in store.list(layout.generation(number)) if key.endswith("/run.json")):
                kept[key] = store.get(key)
                moved = {"started": 10_000, "finished": 10_000 + 1000 * seconds}
                store.put_json(key, {**store.get_json(key), **moved})
        each = measured(store)
        assert each["make"] == 3.0, "the median over all children"
        finalising = 3 * each["make"] + (3 * 3 + (4 + 3 + 1) * 3) * each["evaluate"]
        assert seconds_left(more, store, state) == 4 * 3 + finalising
    finally:
        for key, data in kept.items():
            store.put(key, data)
