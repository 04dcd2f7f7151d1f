"""The first singular vectors of a matrix hold the energy that a float64 decomposition's do."""

from __future__ import annotations

import pytest
import torch

from cycleqd.weights import leading
from cycleqd.weights.leading import leading_vectors

ROWS, COLUMNS, RANK = 300, 256, 8


def matrix(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values, largest entry 1."""
    random = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), generator=random, dtype=torch.float64)).Q
        for side in (ROWS, COLUMNS)
    )
    found = (left * values) @ right.T
    return (found / found.abs().max()).float()


SPECTRA = {
    "falling": torch.arange(1, COLUMNS + 1).double() ** -0.7,
    "falling slowly": torch.arange(1, COLUMNS + 1).double() ** -0.4,
    "signal and noise": torch.cat((torch.full((RANK,), 1.0), torch.full((COLUMNS - RANK,), 0.02))).double(),
    "a lower rank": torch.ones(RANK - 2).double(),
    "the rank, falling steeply": torch.logspace(0, -4, RANK).double(),
    "equal": torch.ones(COLUMNS).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_vectors_hold_the_energy_of_the_best(name: str) -> None:
    tall = matrix(SPECTRA[name])
    vectors = leading_vectors(tall, RANK)
    best = torch.linalg.svdvals(tall.double())[:RANK].square().sum()
    assert vectors.shape == (COLUMNS, RANK) and vectors.dtype == torch.float32
    assert torch.allclose(vectors.mT @ vectors, torch.eye(RANK), atol=1e-5)
    assert float((tall.double() @ vectors.double()).square().sum()) == pytest.approx(float(best), rel=2e-6)
    assert torch.equal(vectors, leading_vectors(tall, RANK))


@pytest.mark.parametrize("name", ["a lower rank", "the rank, falling steeply"])
def test_a_matrix_of_the_rank_is_held_whole(name: str) -> None:
    tall = matrix(SPECTRA[name])
    vectors = leading_vectors(tall, RANK)
    rest = tall - tall @ vectors @ vectors.mT
    assert torch.linalg.matrix_norm(rest) < 1e-5 * torch.linalg.matrix_norm(tall)


def test_only_what_does_not_converge_and_small_matrices_are_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[tuple[int, ...]] = []
    exact = leading.right_vectors
    monkeypatch.setattr(
        leading, "right_vectors", lambda tall, *rest: whole.append(tuple(tall.shape)) or exact(tall, *rest)
    )
    leading_vectors(matrix(SPECTRA["falling"]), RANK)
    assert not whole
    noise = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(leading, "_GAIN", 0.0)
    leading_vectors(noise, RANK)
    leading_vectors(matrix(SPECTRA["falling"]), COLUMNS - 1)
    assert whole == [(ROWS, COLUMNS), (ROWS, COLUMNS)]
