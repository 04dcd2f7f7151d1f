"""Dominance over score vectors (all maximised): fronts, crowding distance, exact hypervolume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cycleqd.search.records import Scored

Points = NDArray[np.float64]


def score_matrix(models: Sequence[Scored], tasks: Sequence[str]) -> Points:
    """Scores as an array [n, K].

    Args:
        models: n models with their scores.
        tasks: K tasks, in the order of the columns.
    """
    rows = [[model.scores[task] for task in tasks] for model in models]
    return np.array(rows, dtype=float).reshape(len(models), len(tasks))


def dominates(points: Points) -> NDArray[np.bool_]:
    """Matrix [n, n]: whether row i is at least as good as row j everywhere and better somewhere.

    Args:
        points: [n, K].
    """
    a, b = points[:, None, :], points[None, :, :]
    return np.asarray((a >= b).all(axis=2) & (a > b).any(axis=2))


def fronts(points: Points) -> list[list[int]]:
    """Non-dominated sorting: indices of the first front, of the front without the first, and so on, each ascending.

    Equal points share a front.

    Args:
        points: [n, K].
    """
    better = dominates(points)
    left = np.ones(len(points), dtype=bool)
    found: list[list[int]] = []
    while left.any():
        front = left & ~better[left].any(axis=0)
        found.append([int(i) for i in np.flatnonzero(front)])
        left &= ~front
    return found


def front(points: Points) -> list[int]:
    """Indices of the non-dominated points, ascending.

    Args:
        points: [n, K].
    """
    return [int(i) for i in np.flatnonzero(~dominates(points).any(axis=0))] if len(points) else []


def crowding(points: Points) -> NDArray[np.float64]:
    """Crowding distance of each point within its front (Deb et al. 2002), [n].

    The extremes of every objective are infinitely far; an objective on which all points are equal adds nothing.

    Args:
        points: [n, K], one front.
    """
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        if span == 0:
            continue
        distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
        distance[order[[0, -1]]] = np.inf
    return distance


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Exact volume dominated by the points and above the reference, by moocore.

    A point not better than the reference in every coordinate adds nothing. The same points in another order give the
    same bits.

    Args:
        points: [n, K].
        reference: K values.
    """
    import moocore

    origin = np.asarray(reference, dtype=float)
    above = points[(points > origin).all(axis=1)] - origin if len(points) else points
    if not len(above):
        return 0.0
    return float(moocore.hypervolume(np.unique(above[front(above)], axis=0), ref=0.0, maximise=True))
