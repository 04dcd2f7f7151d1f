"""Axes and cells: the paper's bounds, right-closed bins, the edges that go wrong in floating point."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.errors import InvalidInputError
from cycleqd.search import method as configuration
from cycleqd.search.grid import Axis, Grid, behaviour, fix_axes
from tests.search.world import TASKS, config, model

EXPERTS = (
    model("expert-code", 0.8, 0.2, 0.1),
    model("expert-db", 0.3, 0.6, 0.2),
    model("expert-os", 0.4, 0.1, 0.9),
    model("expert-os2", 0.2, 0.3, 0.5),
)
SPECIALISTS = {"expert-code": "code", "expert-db": "db", "expert-os": "os", "expert-os2": "os"}


def test_bins_are_right_closed() -> None:
    axis = Axis.make(0.2, 0.8, 3)  # edges 0.2, 0.4, 0.6, 0.8
    assert [axis.bin(s) for s in (0.2, 0.21, 0.4, 0.41, 0.6, 0.61, 0.8)] == [0, 0, 0, 1, 1, 2, 2]


def test_scores_outside_fall_in_the_outer_bins() -> None:
    axis = Axis.make(0.2, 0.8, 3)
    assert [axis.bin(s) for s in (0.0, 0.1999, 0.8001, 1.0)] == [0, 0, 2, 2]


def test_edges_that_floating_point_misses() -> None:
    # 3 * 0.1 > 0.3, and 0.35 + 0.55 * 4 / 11 > 0.55: a plain comparison would put the score a bin too low or too high
    assert Axis.make(0.0, 1.0, 10).bin(0.3) == 2
    assert Axis.make(0.0, 1.0, 10).bin(0.7) == 6
    assert Axis.make(0.35, 0.9, 11).bin(0.55) == 3


@given(
    bounds=st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda b: b[0] < b[1]),
    bins=st.integers(1, 30),
    hits=st.integers(0, 200),
)
def test_bins_match_exact_arithmetic(bounds: tuple[int, int], bins: int, hits: int) -> None:
    low, high, score = Fraction(bounds[0], 100), Fraction(bounds[1], 100), Fraction(hits, 200)
    # right-closed by definition: the number of inner edges strictly below the score
    expected = sum(low + (high - low) * j / bins < score for j in range(1, bins))
    assert Axis.make(float(low), float(high), bins).bin(float(score)) == expected


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
def test_bins_are_monotone_and_in_range(a: float, b: float, bins: int, one: float, other: float) -> None:
    axis = Axis.make(min(a, b), max(a, b), bins)
    low, high = axis.bin(min(one, other)), axis.bin(max(one, other))
    assert 0 <= low <= high < axis.bins


def test_width_zero_gives_one_bin() -> None:
    axis = Axis.make(0.5, 0.5, 15)
    assert (axis.bins, axis.bin(0.0), axis.bin(0.5), axis.bin(1.0)) == (1, 0, 0, 0)


def test_bounds_from_all_experts_are_clipped() -> None:
    axes = fix_axes(configuration.GridConfig(), TASKS, EXPERTS, SPECIALISTS)
    assert (axes["code"].low, axes["code"].high) == pytest.approx((0.85 * 0.2, 1.15 * 0.8))
    assert (axes["db"].low, axes["db"].high) == pytest.approx((0.85 * 0.1, 1.15 * 0.6))
    assert (axes["os"].low, axes["os"].high) == pytest.approx((0.85 * 0.1, 1.0))  # 1.15 * 0.9 > 1
    assert {axis.bins for axis in axes.values()} == {15}


def test_bounds_from_the_tasks_own_experts() -> None:
    axes = fix_axes(configuration.GridConfig(bounds="own_expert", bins=5), TASKS, EXPERTS, SPECIALISTS)
    assert (axes["code"].low, axes["code"].high) == pytest.approx((0.85 * 0.8, 1.15 * 0.8))
    assert (axes["os"].low, axes["os"].high) == pytest.approx((0.85 * 0.5, 1.0))  # two experts of the task
    with pytest.raises(InvalidInputError, match="task 'code' has no expert"):
        fix_axes(configuration.GridConfig(bounds="own_expert"), TASKS, EXPERTS[1:], SPECIALISTS)


def test_explicit_bounds_and_bins() -> None:
    grid = configuration.GridConfig(
        bounds={"code": (0, 1), "db": (0.2, 0.4), "os": (0.5, 0.5)}, bins={"code": 2, "db": 3, "os": 4}
    )
    axes = fix_axes(grid, TASKS, EXPERTS, SPECIALISTS)
    assert axes == {"code": Axis(0, 1, 2), "db": Axis(0.2, 0.4, 3), "os": Axis(0.5, 0.5, 1)}


@pytest.mark.parametrize("score", [0.0, 0.4])
def test_a_task_on_which_all_experts_score_the_same_has_one_bin(score: float) -> None:
    flat = [model("expert-code", 0.5, score, 0.1), model("expert-db", 0.4, score, 0.2)]
    axes = fix_axes(configuration.GridConfig(), TASKS, flat, {})
    assert axes["db"] == Axis(0.85 * score, 1.15 * score, 1) and axes["code"].bins == 15
    own = fix_axes(configuration.GridConfig(bounds="own_expert"), TASKS[:2], flat, SPECIALISTS)
    assert (own["code"].bins, own["db"].bins) == (15, 1)  # one expert of its own a task: that is not flat
    bounds = {"code": (0.0, 1.0), "db": (0.0, 1.0), "os": (0.0, 1.0)}
    assert fix_axes(configuration.GridConfig(bounds=bounds), TASKS, flat, {})["db"].bins == 15


def test_the_behaviour_is_every_other_task_in_order() -> None:
    axes = {task: Axis(0.0, 1.0, bins) for task, bins in zip(TASKS, (2, 5, 10), strict=True)}
    grid = behaviour(axes, "db")
    assert grid == Grid(("code", "os"), (axes["code"], axes["os"]))
    assert (grid.shape, grid.cells) == ((2, 10), 20)
    assert grid.cell({"code": 0.6, "db": 0.0, "os": 0.05}) == (1, 0)


def test_two_tasks_make_strips() -> None:
    two = config(tasks=("code", "db"))
    axes = fix_axes(two.method.grid, two.search_tasks, EXPERTS[:2], SPECIALISTS)
    assert behaviour(axes, "code").shape == (15,)
