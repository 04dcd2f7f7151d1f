"""Scaling the singular values of dense matrices: what SVD mutation (paper, section 3.3) asks for."""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import torch

_RESOLVED = 1e-3  # of the largest eigenvalue: what is below gets a Gram matrix of its own
_LONG = 1 << 14  # rows (embeddings have more): singular values are so close that fp32 would mix their directions
_NOISE = 1e-6  # of the largest singular value: below it is fp32's own rounding
_PIECE = 1 << 12  # rows that a float64 Gram matrix is made of at a time: their copies are small beside the matrix

_prepared: set[str] = set()
_preparing = Lock()


class Precision(NamedTuple):
    """In which dtype a Gram matrix is made, and in which it is decomposed."""

    product: torch.dtype
    decomposition: torch.dtype


def gram_precision(device_type: str, rows: int) -> Precision:
    """The precision of the Gram matrix of a matrix.

    On a CPU the matrix is made in float32, and decomposed in float64 where it is long, which costs little beside making
    it. Elsewhere both are float64: CUDA's float32 eigendecomposition alone is off by more than `svd_rescale` allows.

    Args:
        device_type: As torch names it.
        rows: The matrix's longer side.
    """
    if device_type != "cpu":
        return Precision(torch.float64, torch.float64)
    return Precision(torch.float32, torch.float64 if rows > _LONG else torch.float32)


def prepare_decompositions(device: str) -> None:
    """Make this process's first decomposition on a device, once; call it before several threads decompose there.

    torch loads its CUDA linear algebra on the first call, and raises RuntimeError ("lazy wrapper should be called at
    most once") where two threads make that call at the same time.

    Args:
        device: As torch names it.
    """
    with _preparing:
        if device not in _prepared:
            torch.linalg.eigh(torch.eye(2, device=device))
            _prepared.add(device)


def svd_rescale(tau: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """τ' = U diag(w σ) Vᵀ for τ = U diag(σ) Vᵀ.

    U (Σ W) Vᵀ = (U W Uᵀ) τ = τ (V W Vᵀ), so the smaller side's singular vectors suffice: the eigenvectors of the
    smaller Gram matrix. Against a float64 SVD the result is off by less than 1e-3 of |τ'| (Frobenius): directions whose
    singular values are closer than fp32 tells apart are mixed, as in any fp32 SVD, and so are those below 1e-6 of the
    largest. An all-zero τ is returned as it is. A stack gives the same as its matrices one by one, up to rounding.

    Args:
        tau: A matrix (m, n) or a stack of matrices (b, m, n), float32.
        w: Factors (min(m, n),) or (b, min(m, n)), float32; w_i scales the i-th largest σ.
    """
    wide = tau.shape[-2] < tau.shape[-1]
    tall = tau.mT if wide else tau
    scale = tau.abs().amax((-2, -1), keepdim=True)
    if not scale.any():
        return tau
    scale[scale == 0] = 1.0  # a zero matrix of a stack
    # Scaled, so that squares neither overflow nor vanish.
    vectors = right_vectors(tall / scale, gram_precision(tau.device.type, tall.shape[-2]))
    mix = torch.matmul(vectors * w.unsqueeze(-2), vectors.mT)
    return torch.matmul(mix, tau) if wide else torch.matmul(tau, mix)


def right_vectors(tall: torch.Tensor, precision: Precision, floor: float = 0.0) -> torch.Tensor:
    """The right singular vectors of a tall matrix or of each of a stack, as columns, largest first; float32.

    A Gram matrix squares the singular values, so one pass resolves about three orders of magnitude; what is below is
    projected out and resolved by a Gram matrix of its own, until nothing above the floor is left.

    Args:
        tall: A matrix (m, n) or a stack (b, m, n), m ≥ n, float32.
        precision: Of the Gram matrices.
        floor: A singular value; 0: 1e-6 of the largest.
    """
    gram = _gram(tall, precision.product)
    decomposition = torch.linalg.eigh(gram.to(precision.decomposition))
    values = decomposition.eigenvalues.flip(-1).to(tall.dtype)
    vectors = torch.flip(decomposition.eigenvectors, (-1,)).to(tall.dtype)
    if tall.ndim == 2:
        return _resolved(tall, values, vectors, precision, floor)
    matrices = zip(tall, values, vectors, strict=True)
    return torch.stack([_resolved(*matrix, precision, floor) for matrix in matrices])


def _gram(tall: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """tallᵀ tall, made in `dtype`."""
    if tall.dtype == dtype:
        return tall.mT @ tall
    gram = torch.zeros(*tall.shape[:-2], tall.shape[-1], tall.shape[-1], dtype=dtype, device=tall.device)
    for first in range(0, tall.shape[-2], _PIECE):
        rows = tall[..., first : first + _PIECE, :].to(dtype)
        gram += rows.mT @ rows
    return gram


def _resolved(
    tall: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, precision: Precision, floor: float
) -> torch.Tensor:
    """The eigenvectors of one Gram matrix, those of the small values computed again."""
    largest = float(values[0])
    resolved = int((values > _RESOLVED * largest).sum())
    if 0 < resolved < len(values):
        tail = vectors[:, resolved:]
        rest = tall @ tail
        floor = floor or _NOISE * largest**0.5
        if float(torch.linalg.vector_norm(rest, dim=0).max()) > floor:
            vectors[:, resolved:] = tail @ right_vectors(rest, precision, floor)
    return vectors
