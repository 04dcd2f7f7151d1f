"""The K archives as heatmaps: a strip a piece for two tasks, a grid for three, pairwise maxima for more."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cycleqd.report.theme import LIGHT, Theme, drawing, figure, percent, png
from cycleqd.search.archive import Archive
from cycleqd.search.grid import Axis
from cycleqd.search.records import Scores
from cycleqd.search.state import State

_COLOURS = "viridis"


def archives(state: State, theme: Theme = LIGHT) -> bytes:
    """All archives of a snapshot in one PNG; equal snapshots give equal bytes.

    Colours span the quality task's axis, which seeding fixed, so pictures of different generations can be compared.

    Args:
        state: A snapshot.
        theme: Colours.
    """
    with drawing(theme):
        drawn = _strips(state, theme) if len(state.tasks) == 2 else _grids(state, theme)
        legend = "○ where an expert's scores fall   ★ best elite   empty: no model yet"
        drawn.supxlabel(legend, x=0.01, ha="left", fontsize=8, color=theme.muted)
        return png(drawn)


def _strips(state: State, theme: Theme) -> Figure:
    """K = 2: a row of cells an archive."""
    made = figure(9.4, 3.9)
    for panel, archive in zip(made.subplots(2, 1), state.archives, strict=True):
        _paint(panel, archive, (0,), state, theme)
        panel.set_yticks([])
        panel.set_aspect("auto")
    return made


def _grids(state: State, theme: Theme) -> Figure:
    """K = 3: a grid an archive, side by side. K ≥ 4: an archive a row, a pair of its behaviours a column."""
    pairs = list(combinations(range(len(state.tasks) - 1), 2))
    rows, columns = (1, len(state.archives)) if len(pairs) == 1 else (len(state.archives), len(pairs))
    made = figure(3.55 * columns, 3.6 * rows + 0.2)
    panels = made.subplots(rows, columns, squeeze=False)
    for index, archive in enumerate(state.archives):
        for position, pair in enumerate(pairs):
            panel = panels[0, index] if len(pairs) == 1 else panels[index, position]
            _paint(panel, archive, pair, state, theme)
            panel.set_box_aspect(1)
    return made


def _paint(panel: Axes, archive: Archive, shown: tuple[int, ...], state: State, theme: Theme) -> None:
    """One archive seen along one or two of its behaviours; a cell shows the best elite behind it."""
    values, span = maxima(archive, shown), state.axes[archive.quality]
    flat = span.high == span.low
    scale = Normalize(0.0, 1.0) if flat else Normalize(span.low, span.high)
    colours = ScalarMappable(scale, _COLOURS)
    grid = np.ma.masked_invalid(values)
    panel.set_facecolor(theme.empty)
    panel.pcolormesh(grid, norm=scale, cmap=_COLOURS, edgecolors=theme.paper, linewidth=1.1)
    _ticks(panel, [archive.grid.axes[i] for i in shown])
    _marks(panel, archive, shown, state, colours)
    panel.spines[:].set_visible(False)
    panel.set_xlabel(f"{archive.grid.tasks[shown[0]]} score, %")
    if len(shown) == 2:
        panel.set_ylabel(f"{archive.grid.tasks[shown[1]]} score, %")
    cells = "cell" if archive.grid.cells == 1 else "cells"
    panel.set_title(f"{archive.quality} archive", pad=20)
    note = f"{len(archive.elites)} of {archive.grid.cells} {cells} · best {percent(_best(archive))} %"
    panel.text(0, 1.02, note, transform=panel.transAxes, fontsize=8, color=theme.muted, va="bottom")
    bar = panel.figure.colorbar(
        colours, ax=panel, fraction=0.045, pad=0.03, aspect=22, extend="neither" if flat else "both"
    )
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda value, _: percent(value))
    bar.set_label(f"quality: {archive.quality} score, %")


def maxima(archive: Archive, shown: tuple[int, ...]) -> NDArray[np.float64]:
    """Best quality along one or two behaviours, [y, x] (one row for one behaviour); NaN where no elite is.

    Args:
        archive: The archive.
        shown: Indices of its behaviours: x, and y where there are two.
    """
    shape = tuple(archive.grid.shape[i] for i in shown)
    values = np.full(shape if len(shape) == 2 else (*shape, 1), np.nan)
    for cell, elite in archive.elites.items():
        at = (cell[shown[0]], cell[shown[1]] if len(shown) == 2 else 0)
        values[at] = np.fmax(values[at], elite.scores[archive.quality])
    return values.T


def _best(archive: Archive) -> float:
    return max(elite.scores[archive.quality] for elite in archive.elites.values())


def _ticks(panel: Axes, axes: list[Axis]) -> None:
    """About five edges an axis, in percent."""
    for axis, bounds in zip((panel.xaxis, panel.yaxis), axes, strict=False):
        step = max(1, round(bounds.bins / 5))
        at = list(range(0, bounds.bins + 1, step))
        axis.set_ticks(at, [f"{100 * bounds.edges[i]:.0f}" for i in at])


def _marks(panel: Axes, archive: Archive, shown: tuple[int, ...], state: State, colours: ScalarMappable) -> None:
    """A ring where an expert's scores fall, a star on the best elite (the one that the final model is made of)."""
    values = maxima(archive, shown)
    places = {_place(archive, expert.scores, shown): "o" for expert in state.experts}
    places[_place(archive, state.bests[archive.quality].scores, shown)] = "*"
    for (x, y), marker in places.items():
        red, green, blue, _ = colours.to_rgba(values[y, x])
        ink = "#10131a" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#ffffff"
        face, size = ("none", 38) if marker == "o" else (ink, 90)
        at = ([x + 0.5], [y + 0.5])
        panel.scatter(*at, s=size, marker=marker, facecolors=face, edgecolors=ink, linewidths=1.2, zorder=3)


def _place(archive: Archive, scores: Scores, shown: tuple[int, ...]) -> tuple[int, int]:
    """Where a model's scores fall on the panel: column, row."""
    cell = archive.grid.cell(scores)
    return cell[shown[0]], cell[shown[1]] if len(shown) == 2 else 0
