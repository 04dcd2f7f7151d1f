"""Dominance over score vectors (all maximised): fronts, crowding distance, exact hypervolume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
    """Exact volume dominated by the points and above the reference.

    A point not better than the reference in every coordinate adds nothing. Computed by slicing along the last
    coordinate; exponential in K - 2, meant for the handful of tasks that one evolution has.

    Args:
        points: [n, K].
        reference: K values.
    """
    origin = np.asarray(reference, dtype=float)
    above = points[(points > origin).all(axis=1)] - origin if len(points) else points
    return _volume(frozenset(map(tuple, above.tolist())))


@lru_cache(maxsize=4096)  # neighbouring snapshots mostly share their fronts
def _volume(points: frozenset[tuple[float, ...]]) -> float:
    if not points:
        return 0.0
    array = np.array(sorted(points))
    array = array[front(array)]
    if array.shape[1] == 1:
        return float(array.max())
    if array.shape[1] == 2:  # on a front, the second coordinate falls as the first one grows
        x, y = array[np.argsort(array[:, 0])].T
        return float(((x - np.concatenate(([0.0], x[:-1]))) * y).sum())
    heights = np.unique(array[:, -1])
    slabs = np.diff(heights, prepend=0.0)
    return float(
        sum(
            slab * _volume(frozenset(map(tuple, array[array[:, -1] >= height, :-1].tolist())))
            for height, slab in zip(heights, slabs, strict=True)
        )
    )
