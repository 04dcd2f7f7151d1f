"""cycleqd archive: the grids in the terminal. K = 2 is a strip, K = 3 a plane, more are shown pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rich.text import Text

from cycleqd.cli.output import console, percent, print_json, say
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.search.archive import Archive
from cycleqd.search.state import State
from cycleqd.storage.evolution import load_state

Plane = Mapping[tuple[int, int], float]
_MARGIN = " " * 7
_DECIMALS = 6


def show(source: ConfigSource, generation: int | None, as_json: bool) -> None:
    """Print the archives of HEAD's snapshot, or of an earlier one.

    Args:
        source: Files and flags that make the configuration.
        generation: Of which snapshot: after so many generations; None is now.
        as_json: Print JSON.

    Raises:
        InvalidInputError: There is no such snapshot.
    """
    with session(source) as opened:
        state = opened.state()
        if generation is not None:
            if not 0 <= generation <= state.generation:
                raise InvalidInputError(f"there is no snapshot {generation}; they are 0 to {state.generation}")
            state = state if generation == state.generation else load_state(opened.store, generation)
    if as_json:
        print_json(_to_json(state))
        return
    say(f"after {state.generation} generations; cells show the elite's quality in per cent")
    for archive in state.archives:
        coverage = f"{len(archive.elites)} of {archive.grid.cells} cells"
        say(f"\nquality {archive.quality}: {coverage}, QD-score {archive.qd_score:.3f}")
        _draw(archive)


def _to_json(state: State) -> Any:
    """The axes with their edges, and every archive's elites, coverage and QD-score, as JSON."""
    grid = {task: {**axis.to_json(), "edges": list(axis.edges)} for task, axis in state.axes.items()}
    archives = [
        {
            **archive.to_json(),
            "coverage": archive.coverage,
            "qd_score": archive.qd_score,
            "axes": list(archive.grid.tasks),
        }
        for archive in state.archives
    ]
    return {"generation": state.generation, "grid": grid, "archives": archives}


def _draw(archive: Archive) -> None:
    """One plane a pair of behaviour axes, each cell the best quality over the axes that are not shown."""
    axes = range(len(archive.grid.tasks))
    pairs: list[tuple[int, int | None]] = list(combinations(axes, 2)) or [(0, None)]
    for across, up in pairs:
        _draw_plane(archive, across, up)


def _draw_plane(archive: Archive, across: int, up: int | None) -> None:
    """The plane, in as many pieces side by side as the terminal is too narrow for."""
    grid, cells = archive.grid, _plane(archive, across, up)
    best = max(cells.values(), default=0.0)
    labels = _labels(grid.axes[across].edges[1:])
    width = 1 + max(map(len, [*labels, "100"]))
    fitting = max(1, (console.width - len(_MARGIN)) // width)
    for first in range(0, len(labels), fitting):
        columns = range(first, min(first + fitting, len(labels)))
        for row in range(grid.shape[up] - 1, -1, -1) if up is not None else (0,):
            edge = f"{percent(grid.axes[up].edges[row + 1]):>6} " if up is not None else _MARGIN
            text = Text(edge, style="dim")
            for column in columns:
                text.append(*_cell(cells.get((column, row)), best, width))
            console.print(text)
        edges = "".join(f"{labels[column]:>{width}}" for column in columns)
        console.print(Text(_MARGIN + edges, style="dim"))
    upwards = f"; upwards: {grid.tasks[up]}" if up is not None else ""
    say(f"{_MARGIN}across: {grid.tasks[across]}{upwards} (upper edges)")


def _labels(edges: Sequence[float]) -> list[str]:
    """Edges in per cent, with as many decimals as tell them apart; edges of a flat axis are equal."""
    for decimals in range(_DECIMALS):
        labels = [f"{100 * edge:.{decimals}f}" for edge in edges]
        if len(set(labels)) == len(set(edges)):
            break
    return labels


def _plane(archive: Archive, across: int, up: int | None) -> Plane:
    """(column, row) → best quality."""
    found: dict[tuple[int, int], float] = {}
    for cell, elite in archive.elites.items():
        key = (cell[across], cell[up] if up is not None else 0)
        found[key] = max(found.get(key, 0.0), elite.scores[archive.quality])
    return found


def _cell(quality: float | None, best: float, width: int) -> tuple[str, str]:
    """A cell's text and style: the best one stands out."""
    if quality is None:
        return f"{'·':>{width}}", "dim"
    return f"{100 * quality:>{width}.0f}", "bold green" if quality >= best else "green"
