"""Mutation of task vectors (paper, section 3.3): SVD-based, and Gaussian noise for the ablation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Seed = int | np.random.SeedSequence

_NOISE_CHUNK = 1 << 20


@dataclass(frozen=True)
class MutationSpec:
    """How to mutate. `kind` svd: w_i ~ U[0, w_max] a singular direction; gaussian: N(0, sigma²) on every parameter.

    `mode` (svd): rescale, τ' = U (Σ W) Vᵀ, keeps the expected task vector at w_max 2; additive, τ' = U (Σ (1 + W)) Vᵀ.
    `embeddings` (svd): whether embeddings and heads are mutated too, as the paper's "every matrix" says.
    """

    kind: Literal["svd", "gaussian"] = "svd"
    mode: Literal["rescale", "additive"] = "rescale"
    w_max: float = 2.0
    sigma: float = 0.0003
    embeddings: bool = True


def tensor_stream(seed: Seed, name: str, *chunk: int) -> np.random.Generator:
    """A stream of its own for each tensor (and chunk of it), so that order and threads change nothing."""
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u4")
    key = (*root.spawn_key, *map(int, words), *chunk)
    return np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=key))


def draw_w(spec: MutationSpec, count: int, stream: np.random.Generator) -> torch.Tensor:
    """The factors of `count` singular values, largest first; float32, on the CPU."""
    w = stream.uniform(0.0, spec.w_max, count) + (1.0 if spec.mode == "additive" else 0.0)
    return torch.from_numpy(w.astype(np.float32))


def svd_rescale(tau: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """τ' = U diag(w σ) Vᵀ for τ = U diag(σ) Vᵀ; w_i belongs to the i-th largest σ. tau (m, n) and w (min(m, n),) float32.

    U (Σ W) Vᵀ = (U W Uᵀ) τ = τ (V W Vᵀ), so the smaller side's singular vectors suffice: the eigenvectors of the smaller Gram matrix.
    What is lost against a full SVD: in fp32 the Gram matrix resolves singular values down to about 1e-3 of the largest; directions
    below that are mixed among each other, which changes τ' by no more than w_max times their size. An all-zero τ is returned as it is.
    """
    rows, columns = tau.shape
    scale = tau.abs().max()
    if not scale:
        return tau
    scaled = tau / scale  # squares neither overflow nor vanish
    gram = scaled @ scaled.T if rows <= columns else scaled.T @ scaled
    vectors = torch.linalg.eigh(gram).eigenvectors  # columns, smallest eigenvalue first
    mix = (vectors * w.flip(-1)) @ vectors.T
    return mix @ tau if rows <= columns else tau @ mix


def gaussian_noise(spec: MutationSpec, seed: Seed, name: str, start: int, stop: int) -> torch.Tensor:
    """Elements [start, stop) of a tensor's noise, N(0, sigma²), float32; the same however the range is cut."""
    first = start - start % _NOISE_CHUNK
    chunks = [
        tensor_stream(seed, name, begin // _NOISE_CHUNK).standard_normal(min(_NOISE_CHUNK, stop - begin), dtype=np.float32)
        for begin in range(first, stop, _NOISE_CHUNK)
    ]
    noise = np.concatenate(chunks)[start - first :] if chunks else np.empty(0, np.float32)
    return torch.from_numpy(noise * np.float32(spec.sigma))
