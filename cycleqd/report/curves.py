"""How the search went: its measures over generations, and the Pareto front at the start and at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cycleqd.report.data import ReportData
from cycleqd.report.theme import Theme, drawing, figure, percent, percent_axis, png
from cycleqd.search.measures import evaluations_to_pass, front_of_all, measure
from cycleqd.search.pareto import front
from cycleqd.search.rebuilt import replayed
from cycleqd.search.records import Scored
from cycleqd.search.state import State, average

_MOST_POINTS = 200

Series = Mapping[str, Sequence[float]]


def measured(data: ReportData) -> Series:
    """Every measure at up to 200 evenly spaced snapshots, rebuilt from the history; "generation" is its number.

    Args:
        data: Its configuration and state.
    """
    last = data.state.generation
    chosen = {round(n) for n in np.linspace(0, last, min(last + 1, _MOST_POINTS))}
    points = [(s.generation, measure(s)) for s in replayed(data.config, data.state) if s.generation in chosen]
    names = set.intersection(*(set(found) for _, found in points))
    series: dict[str, list[float]] = {"generation": [float(generation) for generation, _ in points]}
    return series | {name: [found[name] for _, found in points] for name in sorted(names)}


def rivals(data: ReportData) -> dict[str, float]:
    """What the search has to beat, with its average on the search split; what was not evaluated is absent.

    Args:
        data: Its state and results.
    """
    found = {"best expert": data.best_expert[1], "naive merge": _average(data, "naive")}
    if data.tuned is not None:
        found["tuned λ"] = _average(data, data.tuned)
    return {name: mark for name, mark in found.items() if mark is not None}


def _average(data: ReportData, model: str) -> float | None:
    tallies = data.scored("search", model)
    return None if tallies is None else average({task: tally.score for task, tally in tallies.items()})


def passed(data: ReportData) -> dict[str, int | None]:
    """Children evaluated until the best average passed each rival's; None: never.

    Args:
        data: Its state and results.
    """
    return {name: evaluations_to_pass(data.state, mark) for name, mark in rivals(data).items()}


def curves(data: ReportData, series: Series, theme: Theme) -> bytes:
    """Six panels over generations, as a PNG.

    Args:
        data: Its tasks and results.
        series: As `measured` returns them.
        theme: Colours.
    """
    with drawing(theme):
        made = figure(10.6, 6.8)
        panels = made.subplots(2, 3).flat
        _averages(next(panels), data, series, theme)
        titles = {
            "Best score on each task, %": {f"best/{task}": task for task in data.tasks},
            "Cells filled, %": {f"coverage/{task}": f"{task} archive" for task in data.tasks},
            "QD-score": {f"qd_score/{task}": f"{task} archive" for task in data.tasks},
            "Volume of the Pareto front": {"hypervolume_all": "all models", "hypervolume_elites": "elites"},
            "Distinct models per filled cell, %": {"diversity": ""},
        }
        for panel, (title, names) in zip(panels, titles.items(), strict=True):
            each_task = next(iter(names)).endswith(f"/{data.tasks[0]}")
            hues: Iterable[str] = theme.hues if each_task else (theme.accent, theme.muted)
            for (name, label), hue in zip(names.items(), _cycled(hues, len(names)), strict=True):
                dashes = (0, (3, 1.5)) if name == "hypervolume_elites" else "-"
                panel.step(series["generation"], series[name], where="post", color=hue, label=label, linestyle=dashes)
            panel.set_title(title)
            if title.endswith("%"):
                percent_axis(panel, "y")
            panel.grid(axis="y")
            if len(names) > 1:
                _legend(panel)
        for panel in made.axes:
            panel.set_xlabel("generations done")
            panel.margins(x=0.01)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        return png(made)


def _cycled(hues: Iterable[str], count: int) -> list[str]:
    known = list(hues)
    return [known[i % len(known)] for i in range(count)]


def _averages(panel: Axes, data: ReportData, series: Series, theme: Theme) -> None:
    """The best average and its model's worst task, against what the search has to beat."""
    x = series["generation"]
    panel.step(x, series["best_average"], where="post", color=theme.accent, linewidth=2.4, label="best average")
    panel.step(x, series["worst_of_best"], where="post", color=theme.accent, linewidth=1.2, alpha=0.6,
               label="its worst task")  # fmt: skip
    for (label, mark), dashes in zip(rivals(data).items(), ((4, 2), (1.5, 2), (6, 2, 1.5, 2)), strict=False):
        panel.axhline(mark, color=theme.muted, linewidth=1.2, linestyle=(0, dashes), label=label)
    panel.set_title("Best average, %")
    percent_axis(panel, "y")
    _legend(panel)


def _legend(panel: Axes) -> None:
    """Below the panel, where it hides no line."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, borderaxespad=0.0)


def fronts(data: ReportData, theme: Theme) -> bytes:
    """Pareto fronts of all models evaluated, after seeding and now, for every pair of tasks, as a PNG.

    Args:
        data: Its state.
        theme: Colours.
    """
    pairs = list(combinations(data.tasks, 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    first = next(replayed(data.config, data.state))
    with drawing(theme):
        made = figure(3.55 * columns + (1.0 if columns == 1 else 0), 3.5 * rows + 0.45)
        panels = made.subplots(rows, columns, squeeze=False).flat
        for panel, pair in zip(panels, pairs, strict=False):
            _pair(panel, data, first, pair, theme)
        for panel in list(panels):
            panel.set_visible(False)
        shown = [
            Line2D([], [], color=theme.muted, marker="o", markersize=5, label="experts (start)"),
            Line2D(
                [], [], color=theme.accent, marker="o", markersize=5, label=f"after {data.state.generation} generations"
            ),
            Line2D(
                [], [], color=theme.muted, marker="o", markersize=3.5, alpha=0.35, linestyle="", label="every child"
            ),
            Line2D([], [], color=theme.ink, marker="D", markersize=6, linestyle="", label="final model (search split)"),
        ]
        made.legend(handles=shown, loc="outside lower left", ncols=4 if columns > 1 else 2)
        return png(made)


def _pair(panel: Axes, data: ReportData, first: State, pair: tuple[str, str], theme: Theme) -> None:
    """One pair of tasks: every child faintly, the two fronts as stairs, the base as a cross, the final model."""
    x, y = pair
    dots = sorted({(line.scores[x], line.scores[y]) for line in data.state.children})
    if dots:
        panel.scatter([a for a, _ in dots], [b for _, b in dots], s=12, color=theme.muted, alpha=0.25, linewidths=0)
    seen = [*(line.scores for line in data.state.history), data.state.base.scores]
    corner = (min(scores[x] for scores in seen), min(scores[y] for scores in seen))
    for state, hue, width in ((data.state, theme.accent, 2.2), (first, theme.muted, 1.4)):
        points = _corners(front_of_all(state), pair)
        across = [corner[0], *(a for a, _ in points), points[-1][0]]
        up = [points[0][1], *(b for _, b in points), corner[1]]
        panel.step(across, up, where="pre", color=hue, linewidth=width, zorder=2)
        panel.scatter(across[1:-1], up[1:-1], s=26, color=hue, zorder=3)
        if state is data.state:
            panel.fill_between(across, up, corner[1], step="pre", color=hue, alpha=0.08, linewidth=0)
    panel.scatter([data.state.base.scores[x]], [data.state.base.scores[y]], s=40, marker="x", color=theme.muted)
    panel.annotate("base", (data.state.base.scores[x], data.state.base.scores[y]), (5, 5), textcoords="offset points",
                   fontsize=7.5, color=theme.muted)  # fmt: skip
    if final := data.scored("search", "final"):
        panel.scatter([final[x].score], [final[y].score], s=44, marker="D", color=theme.ink, zorder=4)
    panel.set_xlabel(f"{x} score, %")
    panel.set_ylabel(f"{y} score, %")
    percent_axis(panel, "x")
    percent_axis(panel, "y")
    panel.grid(visible=True)


def _corners(models: Sequence[Scored], pair: tuple[str, str]) -> list[tuple[float, float]]:
    """The front of a projection, by rising first score."""
    points = sorted({(model.scores[pair[0]], model.scores[pair[1]]) for model in models})
    return [points[i] for i in front(np.array(points))]


def describe_front(data: ReportData) -> str:
    """The text alternative of the fronts.

    Args:
        data: Its state.
    """
    first, last = (front_of_all(state) for state in (next(replayed(data.config, data.state)), data.state))
    best = ", ".join(f"{task} {percent(max(m.scores[task] for m in last))} %" for task in data.tasks)
    return (
        f"The Pareto front has {len(first)} models after seeding and {len(last)} now; its furthest points are {best}."
    )
