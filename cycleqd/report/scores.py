"""Scores with their error bars: every compared model on every task and on average, one panel a task."""

from __future__ import annotations

from cycleqd.report.data import ReportData, Row, Split
from cycleqd.report.statistics import Interval, average, ratio, share
from cycleqd.report.theme import Theme, drawing, figure, percent_axis, png

_EVOLVED = ("best", "aggregated", "final")


def colours(data: ReportData, theme: Theme) -> dict[str, str]:
    """Model id → colour: experts have their own, what evolution made the accent, the others are grey.

    Args:
        data: The models to compare.
        theme: Colours to choose from.
    """
    plain = {row.id: theme.accent if row.kind in _EVOLVED else theme.muted for row in data.rows}
    return plain | expert_colours(data, theme)


def expert_colours(data: ReportData, theme: Theme) -> dict[str, str]:
    """Expert id → colour: its task's for the first expert of a task, as in all pictures; spare ones for the others.

    Args:
        data: Tasks and experts.
        theme: Colours to choose from.
    """
    found: dict[str, str] = {}
    spare = len(data.tasks)
    for name, expert in data.config.models.experts.items():
        hue = theme.hue(data.tasks.index(expert.task))
        if hue in found.values():
            hue, spare = theme.hue(spare), spare + 1
        found[f"expert-{name}"] = hue
    return found


def forest(data: ReportData, split: Split, theme: Theme) -> bytes:
    """A dot and its 95 % interval for each model, task by task, the average last, as a PNG.

    Args:
        data: The models and their results.
        split: Which samples.
        theme: Colours.
    """
    rows = [row for row in data.rows if data.scored(split, row.id)]
    columns = [*data.tasks, "average"]
    with drawing(theme):
        made = figure(2.0 + 1.75 * len(columns), 0.9 + 0.36 * len(rows))
        panels = made.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
        hues = colours(data, theme)
        for panel, column in zip(panels, columns, strict=True):
            for height, row in enumerate(reversed(rows)):
                tallies = data.scored(split, row.id) or {}
                found = average(tallies) if column == "average" else share(tallies[column])
                bold = row.kind == "final"
                panel.plot([found.low, found.high], [height] * 2, color=hues[row.id], alpha=0.45, linewidth=4.5)
                marker = "D" if bold else "o"
                panel.scatter([found.value], [height], s=38, marker=marker, color=hues[row.id], zorder=3)
                note = panel.annotate(f"{100 * found.value:.1f}", (found.value, height), (0, 5.5), fontsize=7.5,
                                      textcoords="offset points", ha="center")  # fmt: skip
                note.set_weight("bold" if bold else "normal")
            panel.set_title(column)
            panel.set_xlabel("score, %")
            percent_axis(panel, "x")
            panel.spines["left"].set_visible(False)
            panel.set_ylim(-0.6, len(rows) - 0.2)
        panels[0].set_yticks(range(len(rows)), [short(row) for row in reversed(rows)], color=theme.ink)
        return png(made)


def short(row: Row) -> str:
    """A row's label where space is short.

    Args:
        row: A model that the report compares.
    """
    names = {"naive": "naive merge", "best": "best single", "aggregated": "softmax aggregate", "tuned": "tuned λ"}
    return {**names, "final": row.label.split(",")[0]}.get(row.kind, row.label)


def forgetting(data: ReportData, theme: Theme) -> bytes:
    """Scores on the report-only tasks as ratios to the base's, as a PNG: below 1 something was forgotten.

    Args:
        data: The models and their results.
        theme: Colours.
    """
    rows = [row for row in data.rows if row.kind != "base"]
    found = {row.id: ratios_to_base(data, row.id) for row in rows}
    rows = [row for row in rows if found[row.id]]
    with drawing(theme):
        made = figure(8.4, 0.9 + 0.75 * max(len(data.watched), 2))
        panel, hues = made.subplots(), colours(data, theme)
        panel.axvline(1.0, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        for place, row in enumerate(rows):
            final = row.kind == "final"
            ratios = list(found[row.id].values())
            offset = 0.16 * ((len(rows) - 1) / 2 - place)
            at = [len(data.watched) - 1 - data.watched.index(task) + offset for task in found[row.id]]
            panel.hlines(at, [r.low for r in ratios], [r.high for r in ratios], hues[row.id], alpha=0.4, linewidth=3)
            size, marker = (46, "D") if final else (30, "o")
            panel.scatter([r.value for r in ratios], at, s=size, marker=marker, color=hues[row.id], label=short(row),
                          zorder=3)  # fmt: skip
        panel.set_yticks(range(len(data.watched)), list(reversed(data.watched)), color=theme.ink)
        panel.set_ylim(-0.6, len(data.watched) - 0.4)
        panel.set_xlabel("score as a ratio to the base's")
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x")
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return png(made)


def ratios_to_base(data: ReportData, model: str) -> dict[str, Interval]:
    """Report-only task → the model's score over the base's, where both were scored and the base's is not 0.

    Args:
        data: The models' results.
        model: Model id.
    """
    split: Split = "test" if "base" in data.results.get("test", {}) else "search"
    ours, base = (data.results.get(split, {}).get(name, {}) for name in (model, "base"))
    shared = [task for task in data.watched if task in ours and task in base and base[task].passed]
    return {task: ratio(ours[task], base[task]) for task in shared}
