"""Peak memory does not grow with the model: a regression such as loading whole checkpoints is caught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.weights.models import write_model

SIDE = 2048
WORK = """
import re, sys
from pathlib import Path
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.merge import merge
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover.dare import Dare
from cycleqd.search.operators.mutation.gaussian import Gaussian
from tests.weights.models import drawn, mean
model, out = sys.argv[1:]
base, parent, other = (open_checkpoint(LocalSource(model)) for _ in range(3))
for crossover, mutation in (
    (mean(1.0, 0.5), None),
    (mean(1.0, 0.5), drawn(Gaussian())),
    (Drawn(Dare(), {"omega": [1.0, 0.5], "seed": 0}), None),
):
    merge(base, [parent, other], crossover, LocalSink(out), mutation=mutation, threads=2)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak(model: Path, out: Path) -> int:
    """Bytes at the peak of a process that merges a model with itself, by mean, with noise, by DARE."""
    run = subprocess.run([sys.executable, "-c", WORK, str(model), str(out)], capture_output=True, text=True, check=True)
    return 1024 * int(run.stdout)


def test_three_times_the_layers_take_the_same_memory(tmp_path: Path) -> None:
    shape = (4 * SIDE, SIDE)
    for count in (2, 6):
        layers = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(shape, dtype=torch.bfloat16) for n in range(count)}
        write_model(tmp_path / str(count), layers)
    grown = 4 * 2 * shape[0] * shape[1]  # bytes that six layers have beyond two, in each of three models
    small, large = (peak(tmp_path / str(count), tmp_path / f"{count}-child") for count in (2, 6))
    assert large - small < grown / 2
