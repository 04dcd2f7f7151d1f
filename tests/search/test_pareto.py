"""Fronts, crowding and hypervolume against their definitions."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.search import pareto


def clouds(most: int, low: int = -3) -> st.SearchStrategy[np.ndarray]:
    """Arrays [n, K] of K = 1 … 6 small integers over 10, so that ties and duplicates abound."""
    return st.integers(1, 6).flatmap(
        lambda k: st.lists(st.tuples(*[st.integers(low, 10)] * k), min_size=1, max_size=most).map(
            lambda rows: np.array(rows, dtype=float) / 10
        )
    )


def inclusion_exclusion(points: np.ndarray) -> float:
    """The volume of a union of boxes [0, p], by its definition."""
    boxes = np.clip(points, 0, None)
    return sum(
        (-1) ** (size + 1)
        * sum(np.prod(boxes[list(chosen)].min(axis=0)) for chosen in combinations(range(len(boxes)), size))
        for size in range(1, len(boxes) + 1)
    )


@settings(max_examples=150, deadline=None)
@given(clouds(7))
def test_hypervolume_is_the_volume_of_the_union_of_boxes(points: np.ndarray) -> None:
    assert pareto.hypervolume(points, [0.0] * points.shape[1]) == pytest.approx(inclusion_exclusion(points), abs=1e-12)


@given(clouds(15), st.randoms(use_true_random=False))
def test_hypervolume_depends_on_the_front_alone(points: np.ndarray, random: object) -> None:
    origin = [0.0] * points.shape[1]
    order = list(range(len(points)))
    random.shuffle(order)  # type: ignore[attr-defined]
    whole = pareto.hypervolume(points, origin)
    assert (
        whole == pareto.hypervolume(points[order], origin) == pareto.hypervolume(points[pareto.front(points)], origin)
    )


def test_hypervolume_by_hand() -> None:
    points = np.array([[0.2, 0.8], [0.6, 0.6], [0.8, 0.1], [0.5, 0.5]])
    # above (0.1, 0.2): 0.1 × 0.6 + 0.4 × 0.4; (0.8, 0.1) is below the reference in its second coordinate
    assert pareto.hypervolume(points, (0.1, 0.2)) == pytest.approx(0.1 * 0.6 + 0.4 * 0.4)
    assert pareto.hypervolume(np.empty((0, 3)), (0, 0, 0)) == 0.0


@given(clouds(15))
def test_fronts_sort_by_dominance(points: np.ndarray) -> None:
    ranks = pareto.fronts(points)
    assert sorted(i for front in ranks for i in front) == list(range(len(points)))
    better = pareto.dominates(points)
    for rank, members in enumerate(ranks):
        assert not better[np.ix_(members, members)].any()
        if rank:
            assert better[np.ix_(ranks[rank - 1], members)].any(axis=0).all()
    assert pareto.front(points) == ranks[0]


def test_crowding_by_hand() -> None:
    points = np.array([[0.0, 1.0], [0.2, 0.7], [0.6, 0.6], [1.0, 0.0]])
    assert pareto.crowding(points).tolist() == pytest.approx([np.inf, 0.6 / 1 + 0.4 / 1, 0.8 / 1 + 0.7 / 1, np.inf])
    assert pareto.crowding(np.array([[0.5, 0.5], [0.5, 0.5]])).tolist() == [0.0, 0.0]
