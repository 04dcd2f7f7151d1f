"""What a device other than the CPU asks for: one first decomposition a process, and float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cycleqd.weights.mutation import gram_precision, right_vectors
from tests.weights.models import tensors, write_model
from tests.weights.test_mutation import error, reference, with_spectrum

# torch's own eigh, loaded as CUDA's is: whoever comes while the first call is at work raises torch's error.
MERGES = """
import json, sys, threading, time, torch
from concurrent.futures import ThreadPoolExecutor
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.merge import merge
from tests.weights.models import drawn, mean

folder, device, merges = sys.argv[1], sys.argv[2], int(sys.argv[3])
eigh, entered, ready, callers = torch.linalg.eigh, [], threading.Event(), []

def lazy(matrix):
    if not ready.is_set():
        entered.append(1)
        if len(entered) > 1:
            raise RuntimeError("lazy wrapper should be called at most once")
        time.sleep(0.5)
        ready.set()
    callers.append(threading.current_thread().name)
    time.sleep(0.02)  # so that no thread does all the work before another one starts
    return eigh(matrix)

torch.linalg.eigh = lazy

def run(number):
    base, a, b = (open_checkpoint(LocalSource(f"{folder}/{model}")) for model in "012")
    sink = LocalSink(f"{folder}/{device}-{number}")
    return merge(base, [a, b], mean(1.0, 0.6), sink, mutation=drawn(), threads=4, device=device).digest

if merges == 1:
    digests = [run(0)]
else:
    with ThreadPoolExecutor(merges) as pool:
        digests = list(pool.map(run, range(merges)))
print(json.dumps({"callers": callers, "digests": digests}))
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base and two experts with five matrices."""
    for seed in range(3):
        write_model(tmp_path / str(seed), tensors(seed))
    return tmp_path


def merged(models: Path, device: str, merges: int) -> dict[str, list[str]]:
    """Merge with SVD mutation in a fresh process of four threads a merge, `merges` of them at once."""
    command = [sys.executable, "-c", MERGES, str(models), device, str(merges)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_first_decomposition_of_a_process_is_made_before_threads_start(models: Path, device: str) -> None:
    first, *others = merged(models, device, 1)["callers"]
    assert first == "MainThread"
    assert len(set(others)) > 1 and "MainThread" not in others


def test_merges_that_begin_at_once_in_a_fresh_process_make_one_first_decomposition(models: Path) -> None:
    found = merged(models, "cpu", 3)
    assert len(set(found["digests"])) == 1
    assert found["callers"][0].startswith("ThreadPoolExecutor-0")


@pytest.mark.parametrize("rows", [1, 2048, 1 << 14, (1 << 14) + 1, 128_256])
def test_a_gram_matrix_is_float64_on_every_device_but_the_cpu(rows: int) -> None:
    assert gram_precision("cuda", rows) == gram_precision("xpu", rows) == (torch.float64, torch.float64)
    long = torch.float64 if rows > 16_384 else torch.float32
    assert gram_precision("cpu", rows) == (torch.float32, long)


@pytest.mark.parametrize("shape", [(2048, 512), (9000, 40), (300, 300)])
def test_what_cuda_computes_in_is_exact_to_fp32s_rounding(shape: tuple[int, int]) -> None:
    """The same code on the CPU in CUDA's precision; on a GPU `python -m benchmarks.gpu` measures it."""
    torch.manual_seed(0)
    tau, w = torch.randn(shape), torch.rand(min(shape)) * 2
    vectors = right_vectors(tau, gram_precision("cuda", max(shape)))
    assert error(tau @ (vectors * w) @ vectors.mT, reference(tau, w)) < 5e-6


def test_stacks_and_wide_spectra_keep_their_small_directions_in_cudas_precision() -> None:
    torch.manual_seed(1)
    wide = with_spectrum(5000, 30, torch.logspace(0, -6, 30, dtype=torch.float64))
    stack, w = torch.stack([wide, torch.randn(5000, 30)]), torch.rand(2, 30) * 2
    vectors = right_vectors(stack, gram_precision("cuda", 5000))
    found = stack @ (vectors * w.unsqueeze(-2)) @ vectors.mT
    assert all(error(found[i], reference(stack[i], w[i])) < 5e-6 for i in (0, 1))
    small = right_vectors(wide, gram_precision("cuda", 5000)).double()[:, -8]
    length = float(torch.linalg.vector_norm(wide.double() @ small))
    assert length == pytest.approx(float(torch.linalg.svdvals(wide.double())[-8]), rel=0.01)
