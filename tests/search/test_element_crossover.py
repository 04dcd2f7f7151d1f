"""TIES and DARE on small task vectors: cases by hand, and laws."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cycleqd.search import method as configuration
from cycleqd.search.operators import Floats
from cycleqd.search.operators.crossover import ElementCrossover
from cycleqd.search.operators.crossover.dare import Dare
from cycleqd.search.operators.crossover.ties import Ties

VALUES = st.floats(-10, 10, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
TASK_VECTORS = arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=VALUES)


def combined(operator: ElementCrossover, taus: Floats, omega: list[float], start: int = 0) -> Floats:
    return operator.combine({"omega": omega, "seed": 7}, "a.weight", start, np.array(taus, np.float32))


def weighted_mean(taus: Floats, omega: list[float]) -> Floats:
    return (np.array(omega) @ taus.astype(float) / sum(omega)).astype(np.float32)


def test_ties_trims_elects_signs_and_averages_those_that_agree() -> None:
    taus = np.array([[5, -4, 3, 0.5], [-1, -6, 4, 2]], np.float32)
    # Half of the elements stay: [5, -4, 0, 0] and [0, -6, 4, 0]. Signs: +, -, +, none.
    assert combined(Ties(density=0.5), taus, [1.0, 1.0]).tolist() == [5.0, -5.0, 4.0, 0.0]
    # Weights: -4 · 1 and -6 · 3 over 4.
    assert combined(Ties(density=0.5), taus, [1.0, 3.0]).tolist() == [5.0, -5.5, 4.0, 0.0]
    # Nothing trimmed: 5 · 1 beats -1 · 3; the smaller ones that agree count too.
    assert combined(Ties(density=1.0), taus, [1.0, 3.0]).tolist() == [5.0, -5.5, 3.75, 1.625]


def test_ties_gives_nothing_where_signs_are_even_and_keeps_what_is_as_large_as_the_last() -> None:
    assert combined(Ties(density=1.0), np.array([[2, 1], [-2, 1]], np.float32), [1.0, 1.0]).tolist() == [0.0, 1.0]
    assert combined(Ties(density=0.3), np.array([[1, 3, 3]], np.float32), [1.0]).tolist() == [0.0, 3.0, 3.0]
    assert combined(Ties(density=0.01), np.array([[1, 3, 2]], np.float32), [1.0]).tolist() == [0.0, 3.0, 0.0]


def test_a_negative_weight_turns_a_parent_around() -> None:
    taus = np.array([[1, 1], [-1, 2]], np.float32)
    assert combined(Ties(density=1.0), taus, [1.0, -1.0]).tolist() == [1.0, -2.0]


def test_dare_drops_at_random_and_rescales() -> None:
    kept = combined(Dare(density=0.25), np.full((1, 40_000), 2, np.float32), [1.0])
    assert set(kept.tolist()) == {0.0, 8.0}
    assert kept.mean() == pytest.approx(2.0, abs=0.1)
    two = combined(Dare(density=0.5), np.full((2, 40_000), 1, np.float32), [1.0, 3.0])
    assert set(two.tolist()) == {0.0, 0.5, 1.5, 2.0}, "every parent has a mask of its own"
    other = Dare(density=0.25).combine({"omega": [1.0], "seed": 8}, "a.weight", 0, np.full((1, 40_000), 2, np.float32))
    assert not np.array_equal(kept, other)


@pytest.mark.parametrize("cuts", [(1000,), (1 << 20,), (10, (1 << 20) + 3)])
def test_how_a_tensor_is_cut_does_not_matter_to_dare(cuts: tuple[int, ...]) -> None:
    taus = np.random.default_rng(1).normal(size=(2, (1 << 20) + 5000)).astype(np.float32)
    whole = combined(Dare(), taus, [1.0, 0.8])
    places = [0, *cuts, taus.shape[1]]
    pieces = [combined(Dare(), taus[:, a:b], [1.0, 0.8], a) for a, b in pairwise(places)]
    assert np.array_equal(np.concatenate(pieces), whole)


@given(taus=TASK_VECTORS, omega=st.lists(st.floats(0.1, 2), min_size=3, max_size=3))
def test_with_density_one_dare_is_the_weighted_mean(taus: Floats, omega: list[float]) -> None:
    omega = omega[: len(taus)]
    found = combined(Dare(density=1.0), taus, omega)
    assert found.dtype == np.float32
    assert np.allclose(found, weighted_mean(taus, omega), rtol=1e-5, atol=1e-5)


@given(taus=TASK_VECTORS, omega=st.lists(st.floats(0.1, 2), min_size=3, max_size=3))
def test_with_density_one_ties_is_the_weighted_mean_where_signs_agree(taus: Floats, omega: list[float]) -> None:
    omega, taus = omega[: len(taus)], np.abs(taus) + np.float32(1)
    assert np.allclose(combined(Ties(density=1.0), taus, omega), weighted_mean(taus, omega), rtol=1e-5)


@given(tau=arrays.arrays(np.float32, st.integers(1, 40), elements=VALUES), density=st.floats(0.05, 1.0))
def test_equal_parents_have_a_child_like_them(tau: Floats, density: float) -> None:
    """TIES keeps what is trimmed of one; DARE at density 1 the whole vector."""
    alone, twins = (combined(Ties(density=density), np.stack([tau] * n), [1.0] * n) for n in (1, 2))
    assert np.array_equal(alone, twins)
    assert all(a in (0.0, b) for a, b in zip(alone.tolist(), tau.tolist(), strict=True))
    assert np.array_equal(combined(Dare(density=1.0), np.stack([tau, tau]), [1.0, 1.0]), tau)


@pytest.mark.parametrize("kind", ["ties", "dare"])
def test_they_are_found_by_name_and_draw_a_weight_for_each_parent(kind: str) -> None:
    operator = configuration.Method.model_validate({"crossover": {"kind": kind, "density": 0.2}}).crossover
    assert isinstance(operator, ElementCrossover) and operator.needs == "elements"
    drawn = operator.draw(2, np.random.default_rng(0))
    assert len(drawn["omega"]) == 2 and ("seed" in drawn) == (kind == "dare")
    assert operator.record(drawn)["density"] == 0.2
