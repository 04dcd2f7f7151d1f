"""The first singular vectors of a large matrix, without decomposing all of it.

A block Krylov space (Musco & Musco, 2015) of a few times the rank is grown until it holds all but 1e-6 of the energy
that the best vectors would; the decomposition is of that small space. Where it does not get there, which takes singular
values that hardly fall, the whole matrix is decomposed: the same up to that 1e-6, and ten times slower.
"""

from __future__ import annotations

import torch

from cycleqd.weights.mutation import gram_precision, right_vectors

_EXTRA = 16  # columns of a block beside the rank: they let it converge faster
_BLOCKS = 8
_GAIN = 1e-6  # of the energy: what the last block must not have added


def leading_vectors(tall: torch.Tensor, rank: int) -> torch.Tensor:
    """The first right singular vectors as columns, largest first, float32; the same on every call.

    Args:
        tall: A matrix that is at least as long as wide, [m, n], float32, with entries around 1 at most.
        rank: How many vectors; of fewer columns all.
    """
    width = rank + _EXTRA
    found = _krylov(tall, rank, width) if _BLOCKS * width <= tall.shape[1] else None
    if found is None:
        return right_vectors(tall, gram_precision(tall.device.type, tall.shape[0]))[:, :rank]
    left = torch.linalg.qr(tall @ found).Q  # half a step more, for directions that are faint beside the first
    vectors: torch.Tensor = torch.linalg.qr(tall.mT @ left).Q
    return vectors


def _krylov(tall: torch.Tensor, rank: int, width: int) -> torch.Tensor | None:
    """The best vectors of the space, or None when it was still growing at the last block."""
    start = torch.randn(tall.shape[1], width, generator=torch.Generator().manual_seed(0))
    space = torch.linalg.qr(start.to(tall.device)).Q
    images = tall @ space
    energy = 0.0
    for _ in range(_BLOCKS - 1):
        block = _orthonormal(tall.mT @ images[:, -width:], space)
        space = torch.cat((space, block), 1)
        images = torch.cat((images, tall @ block), 1)
        gram = images.double()
        decomposition = torch.linalg.eigh(gram.mT @ gram)
        previous, energy = energy, float(decomposition.eigenvalues[-rank:].sum())
        if energy - previous <= _GAIN * energy:
            best: torch.Tensor = decomposition.eigenvectors[:, -rank:].flip(-1)
            return space @ best.to(space.dtype)
    return None


def _orthonormal(block: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of a block beside a space; twice, since what is left of the block may be rounding alone."""
    for _ in range(2):
        block = torch.linalg.qr(block - space @ (space.mT @ block)).Q
    return block
