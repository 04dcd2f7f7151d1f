"""The mutation's mathematics against a float64 SVD with the same W."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.search.operators import Floats
from cycleqd.search.operators.mutation import Matrix
from cycleqd.search.operators.mutation.gaussian import Gaussian
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.search.randomness import tensor_stream
from cycleqd.weights.mutation import svd_rescale

TOLERANCE = 1e-3  # of |τ'|, Frobenius; fp32's own torch.linalg.svd is no closer on the random matrices


def reference(tau: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """U diag(w σ) Vᵀ in float64."""
    u, s, v = torch.linalg.svd(tau.double(), full_matrices=False)
    return (u * (s * w.double())) @ v


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error."""
    return float(torch.linalg.norm(found.double() - expected) / torch.linalg.norm(expected))


def with_spectrum(rows: int, columns: int, singular_values: torch.Tensor) -> torch.Tensor:
    """A random matrix with these singular values."""
    k = len(singular_values)
    u = torch.linalg.qr(torch.randn(rows, k, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, k, dtype=torch.float64))[0]
    return ((u * singular_values) @ v.T).float()


@pytest.mark.parametrize(
    "shape", [(64, 64), (40, 200), (200, 40), (512, 512), (256, 688), (8000, 64), (1, 30), (30, 1)]
)
def test_it_equals_a_full_svd_with_the_same_w(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    tau, w = torch.randn(shape) * 1e-3, torch.rand(min(shape)) * 2
    assert error(svd_rescale(tau, w), reference(tau, w)) < TOLERANCE


def test_an_embedding_of_128k_rows_is_no_less_exact() -> None:
    """Its singular values lie close together, and the error of an fp32 eigendecomposition grows with both sides."""
    torch.manual_seed(0)
    tau, w = torch.randn(128_256, 192) * 1e-3, torch.rand(192) * 2
    assert error(svd_rescale(tau, w), reference(tau, w)) < TOLERANCE / 10


@pytest.mark.parametrize("decades", [3, 6, 10])
@pytest.mark.parametrize("shape", [(128, 128), (96, 300), (300, 96)])
def test_singular_values_may_spread_over_many_orders_of_magnitude(shape: tuple[int, int], decades: int) -> None:
    torch.manual_seed(decades)
    values = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    tau, w = with_spectrum(*shape, values), torch.rand(min(shape)) * 2
    assert error(svd_rescale(tau, w), reference(tau, w)) < TOLERANCE


def test_small_directions_get_their_own_factor_down_to_a_millionth() -> None:
    """What is lost: below 1e-6 of the largest singular value directions are mixed; above, each keeps its w."""
    torch.manual_seed(0)
    values = torch.logspace(0, -5, 6, dtype=torch.float64)
    tau = with_spectrum(32, 32, values)
    u, s, v = torch.linalg.svd(tau.double())
    w = torch.tensor([0.5, 1.5, 0.2, 1.9, 0.7, 1.2, *[1.0] * 26])
    found = svd_rescale(tau, w).double()
    factors = torch.stack([u[:, i] @ found @ v[i] / s[i] for i in range(6)])
    assert torch.allclose(factors, w[:6].double(), rtol=0.05)


@pytest.mark.parametrize("rank", [1, 5])
def test_a_rank_deficient_task_vector_keeps_its_rank(rank: int) -> None:
    torch.manual_seed(2)
    tau, w = torch.randn(60, rank) @ torch.randn(rank, 90), torch.rand(60) * 2
    found = svd_rescale(tau, w)
    assert error(found, reference(tau, w)) < TOLERANCE
    assert int(torch.linalg.matrix_rank(found, rtol=1e-4)) == rank


def test_an_all_zero_task_vector_stays_zero_and_tiny_values_do_not_vanish() -> None:
    assert not svd_rescale(torch.zeros(4, 6), torch.ones(4)).any()
    torch.manual_seed(3)
    tau, w = torch.randn(20, 20) * 1e-25, torch.rand(20)  # squares of 1e-50 are zero in fp32
    assert error(svd_rescale(tau, w), reference(tau, w)) < TOLERANCE


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
def test_a_stack_gives_what_its_matrices_give_one_by_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    small = with_spectrum(*shape, torch.logspace(0, -5, min(shape), dtype=torch.float64))
    stack = torch.stack([torch.randn(shape), torch.zeros(shape), small * 1e-3])
    w = torch.rand(3, min(shape)) * 2
    found = svd_rescale(stack, w)
    assert not found[1].any()
    assert all(error(found[i], svd_rescale(stack[i], w[i]).double()) < 1e-5 for i in (0, 2))


def test_the_first_factor_belongs_to_the_largest_singular_value() -> None:
    tau = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    found = svd_rescale(tau, torch.tensor([0.5, 1.0, 2.0]))
    assert torch.allclose(found, torch.diag(torch.tensor([2.0, 1.5, 2.0])), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 2**32 - 1))
def test_laws_of_the_rescaling(rows: int, columns: int, seed: int) -> None:
    """w = 1 changes nothing, a constant factors out, and no direction grows by more than the largest w."""
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(rows, columns, generator=generator)
    ones = torch.ones(min(rows, columns))
    assert torch.allclose(svd_rescale(tau, ones), tau, atol=1e-4)
    assert torch.allclose(svd_rescale(tau, 1.7 * ones), 1.7 * tau, atol=1e-4)
    w = torch.rand(min(rows, columns), generator=generator) * 2
    norm = torch.linalg.matrix_norm
    assert norm(svd_rescale(tau, w), 2) <= float(w.max()) * norm(tau, 2) * (1 + 1e-4)


def test_streams_depend_on_seed_and_name_and_on_nothing_else() -> None:
    def draw(seed: int, name: str) -> tuple[float, ...]:
        return tuple(tensor_stream(seed, name).uniform(size=3))

    assert draw(7, "a") == draw(7, "a")
    assert len({draw(seed, name) for seed in (7, 8) for name in ("a", "b")}) == 4


@pytest.mark.parametrize(("mode", "low", "high"), [("rescale", 0.0, 2.0), ("additive", 1.0, 3.0)])
def test_factors_are_uniform_in_their_range(mode: Literal["rescale", "additive"], low: float, high: float) -> None:
    w = Svd(mode=mode, w_max=2.0).factors({"seed": 1}, Matrix("t", 20_000, embedding=False))
    assert low <= float(w.min()) < low + 0.01 and high - 0.01 < float(w.max()) <= high
    assert abs(float(w.mean()) - (low + high) / 2) < 0.02


def test_a_matrix_of_fewer_directions_has_the_first_factors_of_one_of_more() -> None:
    few, many = (Svd().factors({"seed": 1}, Matrix("t", count, embedding=False)) for count in (48, 4096))
    assert np.array_equal(few, many[:48])


def test_gaussian_noise_is_the_same_however_it_is_cut() -> None:
    size = (1 << 20) + 4096

    def noise(start: int, stop: int) -> Floats:
        return Gaussian().change({"seed": 3}, "t", start, np.zeros(stop - start, np.float32))

    whole = noise(0, size)
    cuts = ((0, 1000), (1000, 1 << 20), ((1 << 20), (1 << 20) + 7), ((1 << 20) + 7, size))
    assert np.array_equal(whole, np.concatenate([noise(*cut) for cut in cuts]))
    assert abs(float(whole.std()) / 0.0003 - 1) < 0.01 and abs(float(whole.mean())) < 1e-6
