"""ω: its distribution, negatives, and the redraw that keeps weights bounded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.search.operators.crossover.mean import Mean


def omega(settings: Mean, rng: np.random.Generator) -> tuple[float, float]:
    first, second = settings.draw(2, rng)["omega"]
    return first, second


@given(mu=st.floats(0.01, 10), sigma=st.floats(0, 20), min_total=st.floats(0, 1.99), seed=st.integers(0, 2**32))
def test_the_sum_is_never_near_zero(mu: float, sigma: float, min_total: float, seed: int) -> None:
    first, second = omega(Mean(mu=mu, sigma=sigma, min_total=min_total), np.random.default_rng(seed))
    assert abs(first + second) >= min_total * mu


def test_draws_follow_the_normal_distribution_and_are_independent() -> None:
    rng = np.random.default_rng(1)
    draws = np.array([omega(Mean(), rng) for _ in range(20_000)])
    assert np.allclose(draws.mean(axis=0), 1.0, atol=5 * 0.01 / np.sqrt(20_000))
    assert np.allclose(draws.std(axis=0), 0.01, rtol=0.03)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 5 / np.sqrt(20_000)


def test_negative_coefficients_occur_and_a_near_zero_sum_is_redrawn() -> None:
    settings = Mean(mu=0.1, sigma=1.0, min_total=1.0)
    draws = [omega(settings, np.random.default_rng(seed)) for seed in range(200)]
    assert any(a < 0 < b for a, b in draws)
    redrawn = [seed for seed in range(200) if abs(np.random.default_rng(seed).normal(0.1, 1.0, 2).sum()) < 0.1]
    assert redrawn and all(draws[seed] != tuple(np.random.default_rng(seed).normal(0.1, 1.0, 2)) for seed in redrawn)


def test_sigma_zero_is_the_mean_of_the_parents() -> None:
    assert omega(Mean(sigma=0.0), np.random.default_rng(0)) == (1.0, 1.0)
