"""What only a machine with a GPU shows: that a merge works there, how exact the mutation is, and how fast both are.

python -m benchmarks.gpu [checks|speed] [--scratch FOLDER] [--repeats 3]
  checks   (default; minutes) a merge with SVD mutation, eight threads, in five fresh processes; the mutation's error
           against a float64 SVD, a shape at a time; exit code 1 where one fails
  speed    merge and mutate of four layers of an 8B (10 GB of files) beside a copy and PCIe; the mutation's time

It needs torch with CUDA and numpy, and says so where there is no device.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.weights.matrices import part_svd
from benchmarks.weights.measuring import Measured, alternate, compare, measure, work
from benchmarks.weights.models import LARGE, MEGABYTE, Shape, make_models, size_mb
from cycleqd.weights.mutation import svd_rescale

BOUND = 1e-3
"""What `svd_rescale` states: the error against a float64 SVD, as a share of the mutated task vector (Frobenius)."""

SHAPES = ((512, 512), (2048, 512), (512, 2048), (1024, 1024), (2048, 2048), (8192, 2048), (32_000, 512), (4, 2048, 512))
"""Matrices, and a stack of them (the last), as a merge has them."""

TINY = Shape(512, 1408, 128, 2048, 8, tied=True)


def merges(scratch: Path, device: str, times: int) -> bool:
    """Whether a merge with SVD mutation succeeds, in `times` fresh processes; each fails loudly in its own line.

    Several threads make their first decompositions at once there, which loads torch's CUDA linear algebra.
    """
    models, out = make_models(scratch / "tiny-8", TINY, 8), scratch / "out"
    right = True
    for number in range(1, times + 1):
        shutil.rmtree(out, ignore_errors=True)
        command = work("fused", str(models), str(out), 8, device)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = "works" if not done.returncode else f"FAILS: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        print(f"  fresh process {number}, fused merge, 8 threads, {device}: {said}", flush=True)
        right = right and not done.returncode
    return right


def accurate(device: str, shapes: Sequence[tuple[int, ...]] = SHAPES, bound: float = BOUND) -> bool:
    """Whether the mutation of random matrices of these shapes stays below the bound; prints each error."""
    right = True
    for shape in shapes:
        torch.manual_seed(0)
        tau, w = torch.randn(shape) * 1e-3, torch.rand(*shape[:-2], min(shape[-2:])) * 2
        found = svd_rescale(tau.to(device), w.to(device)).cpu().double()
        u, s, v = torch.linalg.svd(tau.double(), full_matrices=False)
        expected = (u * (s * w.double()).unsqueeze(-2)) @ v
        error = float((found - expected).norm() / expected.norm())
        name = " x ".join(map(str, shape))
        print(
            f"  {name}, {device}: off by {error:.1e}, {'below' if error < bound else 'NOT BELOW'} {bound:.0e}",
            flush=True,
        )
        right = right and error < bound
    return right


def speed(scratch: Path, repeats: int) -> None:
    """An 8B-shaped checkpoint of four layers: merge and mutate with matrices on the GPU, beside copy and PCIe."""
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    for _ in range(2):
        started = time.perf_counter()
        host.to("cuda")
        torch.cuda.synchronize()
        rate = host.numel() / MEGABYTE / (time.perf_counter() - started)
    print(f"  PCIe, pinned: {rate:.0f} MB/s")
    models, out = make_models(scratch / "large-4", LARGE, 4), scratch / "out"
    moved = 3 * size_mb(models / "a")

    def run(name: str) -> Measured:
        shutil.rmtree(out, ignore_errors=True)
        return measure(work(name, str(models), str(out), 8, "cuda"))

    found = alternate({name: partial(run, name) for name in ("copy", "merge", "mutate", "fused")}, repeats)
    compare(found, moved)
    for name in ("mutate", "fused"):
        print(f"  {name}: {found[name].seconds - found['merge'].seconds:.1f} s more than the merge; "
              f"{moved / found[name].seconds / rate:.0%} of PCIe")  # fmt: skip
    part_svd(repeats, "cuda")


def main() -> int:
    """Run one part; the exit code is 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["checks", "speed"], default="checks")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cycleqd-benchmark")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was run: run this on a machine with an NVIDIA GPU.")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        speed(options.scratch, options.repeats)
        return 0
    right = [merges(options.scratch, "cuda", 5), accurate("cuda")]
    print("both checks passed" if all(right) else "a check FAILED")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
