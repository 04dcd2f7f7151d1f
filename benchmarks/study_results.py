"""What the study writes: the table of its methods, and the picture of their fronts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(methods: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: fresh scores of the final model and of the best single one, mean and standard error over the seeds."""
    lines = [
        "| method | final model: average | code / db / os | best single model | passes naive merge after | passes best "
        "expert after | hypervolume |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in methods:
        runs = [one for one in results if one["method"] == name]
        if not runs:
            continue
        tasks = list(runs[0]["final"])
        each = " / ".join(f"{100 * _mean([run['final'][task] for run in runs]):.1f}" for task in tasks)
        passed = [_evaluations(runs, key) for key in ("evaluations_to_pass/naive", "evaluations_to_pass/best_expert")]
        volume = _mean([run["measures"]["hypervolume_all"] for run in runs])
        lines.append(
            f"| {name} | {_spread(runs, 'final')} | {each} | {_spread(runs, 'best')} | {passed[0]} | {passed[1]} "
            f"| {volume:.3f} |"
        )
    first = results[0]
    for label, scores in [("naive merge", first["naive"]), ("base", first["base"]), *first["experts"].items()]:
        each = " / ".join(f"{100 * value:.1f}" for value in scores.values())
        lines.append(f"| {label} | {100 * _mean(list(scores.values())):.1f} | {each} | | | | |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _spread(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    averages = [100 * _mean(list(run[key].values())) for run in runs]
    mean = _mean(averages)
    if len(averages) == 1:
        return f"{mean:.1f}"
    error = math.sqrt(math.fsum((a - mean) ** 2 for a in averages) / (len(averages) - 1) / len(averages))
    return f"{mean:.1f} ± {error:.1f}"


def _evaluations(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(str(int(run["measures"][key])) if key in run["measures"] else "never" for run in runs)


def draw_fronts(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Pareto fronts of all models evaluated, pair by pair of tasks, the methods overlaid (seed 0)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    first = [run for run in results if run["seed"] == results[0]["seed"]]
    tasks = list(first[0]["final"])
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    figure, panels = pyplot.subplots(1, len(pairs), figsize=(5 * len(pairs), 4.6), layout="constrained")
    for panel, (x, y) in zip(panels, pairs, strict=True):
        for run in first:
            points = sorted({(100 * p[x], 100 * p[y]) for p in run["front"]}, key=lambda p: (-p[0], -p[1]))
            kept, top = [], -1.0
            for point in points:
                if point[1] > top:
                    kept.append(point)
                    top = point[1]
            panel.step(*zip(*kept, strict=True), where="post", marker="o", ms=4, label=run["method"], alpha=0.8)
        panel.set(xlabel=f"{x} (%)", ylabel=f"{y} (%)")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
