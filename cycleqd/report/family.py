"""The family tree of the final model: who descends from whom, and the share of each expert in every model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from cycleqd.report.data import ReportData
from cycleqd.report.scores import expert_colours
from cycleqd.report.theme import Theme, drawing, figure, png
from cycleqd.search.algorithms import algorithm

_MOST_DRAWN = 48


@dataclass(frozen=True)
class Ancestor:
    """A member of the tree. parents: (model id, share ω_i / Σω or β). experts: expert id → its share of the weights.

    Shares leave mutations out: they are exact for the merge and an indication after an SVD mutation.
    """

    id: str
    generation: int
    parents: tuple[tuple[str, float], ...]
    experts: Mapping[str, float]


def tree(data: ReportData) -> dict[str, Ancestor]:
    """The final model and all its ancestors by id, ancestors first; without a recipe, the best single model's.

    Args:
        data: Its recipe and children.
    """
    top = "final" if data.recipe else data.best
    found: dict[str, Ancestor] = {}
    for name in _ancestors_first(data, top):
        parents = _parents(data, name)
        experts: dict[str, float] = {} if parents else {name: 1.0}
        for parent, weight in parents:
            for expert, amount in found[parent].experts.items():
                experts[expert] = experts.get(expert, 0.0) + weight * amount
        generation = data.state.generation if name == "final" else data.children[name].generation if parents else -1
        found[name] = Ancestor(name, generation, parents, experts)
    return found


def _parents(data: ReportData, name: str) -> tuple[tuple[str, float], ...]:
    if name == "final":
        return data.recipe
    child = data.children.get(name)
    if child is None:
        return ()
    shares: dict[str, float] = {}
    for parent, share in child.shares:
        shares[parent] = shares.get(parent, 0.0) + share
    return tuple(shares.items())


def _ancestors_first(data: ReportData, top: str) -> list[str]:
    """Experts, then children in order of making, then the final model."""
    seen, open_ = {top}, [top]
    while open_:
        for parent, _ in _parents(data, open_.pop()):
            if parent not in seen:
                seen.add(parent)
                open_.append(parent)
    experts = [expert.model.id for expert in data.state.experts if expert.model.id in seen]
    return [*experts, *sorted(name for name in seen if name in data.children), *({"final"} & seen)]


def drawn(family: Mapping[str, Ancestor]) -> dict[str, Ancestor]:
    """The experts and the youngest ancestors, as many as a picture holds.

    Args:
        family: The whole tree, ancestors first.
    """
    experts = [name for name, member in family.items() if not member.parents]
    others = [name for name, member in family.items() if member.parents]
    return {name: family[name] for name in [*experts, *others[-_MOST_DRAWN:]]}


def picture(data: ReportData, theme: Theme) -> bytes:
    """The tree from the experts (left) to the final model (right) as a PNG; pies are shares of the experts.

    Args:
        data: Its recipe and children.
        theme: Colours.
    """
    family = drawn(tree(data))
    hues = expert_colours(data, theme)
    columns = _columns(list(family.values()))
    places = _places(family, columns)
    tallest = max(len(members) for members in columns)
    with drawing(theme):
        made = figure(min(max(1.2 * len(columns) + 1.5, 7.0), 11.5), min(max(0.8 * tallest + 0.8, 3.0), 8.5))
        panel = made.subplots()
        for name, member in family.items():
            for parent, weight in member.parents:
                if parent in places:
                    _edge(panel, places[parent], places[name], weight, theme)
        size = 420 if len(family) < 25 else 230
        for name, member in family.items():
            big = name == "final" or not member.parents
            _pie(panel, places[name], member, hues, size * (1.9 if big else 1), theme)
            label = _label(data, name)
            panel.annotate(label, places[name], (0, -(18 if size > 400 else 14) - 5 * big), textcoords="offset points",
                           ha="center", va="top", fontsize=9 if big else 7.5,
                           color=theme.ink if big else theme.muted, weight="bold" if big else "normal")  # fmt: skip
        panel.set_axis_off()
        panel.margins(0.06, 0.16)
        return png(made)


def _label(data: ReportData, name: str) -> str:
    """The id without its zeros and, where generations have one child, without the child's number."""
    child = data.children.get(name)
    if child is None:
        return name.removeprefix("expert-")
    return f"g{child.generation}" if algorithm(data.config).children == 1 else f"g{child.generation}-c{child.index}"


def _columns(members: Sequence[Ancestor]) -> list[list[str]]:
    """Members by generation, the experts first, the final model alone and last."""
    columns: dict[tuple[bool, int], list[str]] = {}
    depth: dict[str, int] = {}
    for member in members:
        known = [depth[parent] for parent, _ in member.parents if parent in depth]
        depth[member.id] = 1 + max(known) if known else (0 if not member.parents else 1)
        columns.setdefault((member.id == "final", depth[member.id]), []).append(member.id)
    return [columns[key] for key in sorted(columns)]


def _places(family: Mapping[str, Ancestor], columns: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    """Columns in order of descent; within one, members are near their parents and at least a step apart."""
    places: dict[str, tuple[float, float]] = {}
    tallest = max(len(members) for members in columns)
    for x, members in enumerate(columns):
        wish = {
            name: float(np.mean([places[p][1] for p, _ in family[name].parents if p in places] or [0.0]))
            for name in members
        }
        ordered = sorted(members, key=lambda name: wish[name]) if x else list(reversed(members))
        step = max(1.0, (tallest - 1) / max(len(members) - 1, 1) * 0.8)
        centre = 0.0 if len(members) > 1 else wish[ordered[0]] * 0.6
        for row, name in enumerate(ordered):
            places[name] = (float(x), centre + step * (row - (len(members) - 1) / 2))
    return places


def _edge(panel: Axes, start: tuple[float, float], end: tuple[float, float], weight: float, theme: Theme) -> None:
    """A curve as thick as the parent's share; dashed where the share is negative."""
    middle = (start[0] + end[0]) / 2
    curve = Path(
        [start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    )
    width = 0.6 + 2.6 * min(abs(weight), 1.0)
    style = "--" if weight < 0 else "-"
    panel.add_patch(PathPatch(curve, fill=False, edgecolor=theme.muted, alpha=0.35, linewidth=width, linestyle=style))


def _pie(
    panel: Axes, at: tuple[float, float], member: Ancestor, hues: Mapping[str, str], size: float, theme: Theme
) -> None:
    """A disc of wedges, drawn as markers so that it stays round at any scale of the axes."""
    panel.scatter([at[0]], [at[1]], s=size * 1.35, color=theme.paper, zorder=2, linewidths=0)
    amounts = {name: max(amount, 0.0) for name, amount in member.experts.items()}
    total, start = sum(amounts.values()) or 1.0, 0.25
    for name, amount in amounts.items():
        if amount / total < 1e-6:
            continue
        angles = 2 * np.pi * np.linspace(start, start - amount / total, 60)
        start -= amount / total
        wedge = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = wedge if amount == total else np.concatenate([[[0, 0]], wedge, [[0, 0]]])
        # a marker is scaled to its largest coordinate, so the size follows the wedge's own extent
        extent = float(np.abs(outline).max())
        panel.scatter(
            [at[0]], [at[1]], s=size * extent**2, marker=Path(outline), color=hues[name], zorder=3, linewidths=0
        )


def lineage(data: ReportData) -> Iterator[tuple[str, str, str]]:
    """Every member of the tree, youngest first: its id, its parents with their shares, how it was mutated.

    Args:
        data: Its recipe and children.
    """
    for member in reversed(tree(data).values()):
        parents = " + ".join(f"{weight:.3f} {parent}" for parent, weight in member.parents) or "an input"
        child = data.children.get(member.id)
        yield member.id, parents, "none" if child is None else child.mutation["kind"]
