"""Single matrices: the SVD mutation's time against a full SVD, and its error against float64."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from cycleqd.weights.mutation import svd_rescale


def part_svd(repeats: int, device: str = "cpu") -> None:
    """One thread and two: the median time of one matrix in alternating runs, after one to warm up."""

    def full(tau: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        u, s, v = torch.linalg.svd(tau, full_matrices=False)
        return torch.matmul(u * (s * w), v)

    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(
            f"SVD mutation of one matrix, {threads} thread(s), {device}: ours against torch.linalg.svd and rebuilding"
        )
        for rows, columns in ((512, 2048), (2048, 512), (2048, 2048), (8192, 2048), (2048, 8192)):
            torch.manual_seed(0)
            tau, w = torch.randn(rows, columns, device=device) * 1e-3, torch.rand(min(rows, columns), device=device) * 2
            times: dict[Any, list[float]] = {svd_rescale: [], full: []}
            for _ in range(repeats + 1):
                for function, seconds in times.items():
                    started = time.perf_counter()
                    result = function(tau, w)
                    float(result[0, 0])  # waits for the device
                    seconds.append(time.perf_counter() - started)
            ours, theirs = (statistics.median(seconds[1:]) for seconds in times.values())
            print(f"  {rows} x {columns}: {ours:.2f} s against {theirs:.2f} s, {theirs / ours:.1f}x", flush=True)


def part_accuracy() -> None:
    """Relative Frobenius error against float64 with the same W, random matrices, one thread.

    The reference is that of the float64 Gram matrix, which for random matrices is as good as a float64 SVD (1e-8).
    """
    torch.set_num_threads(1)
    weights = [(512, 512), (1024, 1024), (2048, 512), (2048, 2048), (8192, 2048)]
    for rows, columns in [*weights, *((128_256, columns) for columns in (64, 576, 2048, 4096))]:
        torch.manual_seed(0)
        tau, w = torch.randn(rows, columns) * 1e-3, torch.rand(columns) * 2
        parts = [slice(first, first + 8192) for first in range(0, rows, 8192)]
        gram = torch.zeros(columns, columns, dtype=torch.float64)
        for part in parts:
            gram += tau[part].double().T @ tau[part].double()
        vectors = torch.linalg.eigh(gram).eigenvectors.flip(-1)
        mix = (vectors * w) @ vectors.T

        ours = svd_rescale(tau, w)
        line = f"  {rows} x {columns}: ours {_error(ours, tau, mix, parts):.1e}"
        if tau.numel() < 1 << 27:
            u, s, v = torch.linalg.svd(tau, full_matrices=False)
            line += f", fp32's own SVD {_error((u * (s * w)) @ v, tau, mix, parts):.1e}"
        print(line, flush=True)


def _error(found: Any, tau: Any, mix: Any, parts: list[slice]) -> float:
    """|found - tau mix| / |tau mix|, a few rows at a time."""
    off = total = 0.0
    for part in parts:
        expected = tau[part].double() @ mix
        off += float((found[part].double() - expected).square().sum())
        total += float(expected.square().sum())
    return float((off / total) ** 0.5)
