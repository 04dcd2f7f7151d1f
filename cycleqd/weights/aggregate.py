"""Aggregation of elites (paper, section 3.4) and naive merges: θ_base + Σ β_k τ_k, without normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.crossover import Linear, weighted
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.merge import SHARD_SIZE
from cycleqd.weights.protocols import Sink
from cycleqd.weights.recipe import Combination
from cycleqd.weights.stream import Progress, write_checkpoint

Method = Literal["task_arithmetic", "linear"]


def combine(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    coefficients: Sequence[float],
    sink: Sink,
    *,
    method: Method = "task_arithmetic",
    threads: int | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Manifest:
    """Write θ_base + Σ β_k τ_k (task_arithmetic), or Σ β_k θ_k / Σ β_k (linear), and return its manifest.

    fp32 arithmetic, one rounding to the base's storage dtype. One model with β = 1 is that model bit for bit; no
    models, or all β 0, give the base. Raises as `merge` does.

    Args:
        base: θ_base.
        models: Fine-tuned from the base.
        coefficients: β, one a model.
        sink: Where the checkpoint is written.
        method: Which of the two combinations.
        threads: CPU threads; None: all processors. The bytes are the same.
        shard_size: Most bytes of a file.
        progress: Called with the number of bytes written since the last call.
    """
    total = math.fsum(coefficients)
    if method == "linear":
        if not total:
            raise InvalidInputError("A linear merge needs coefficients with a sum other than 0.")
        coefficients = [value / total for value in coefficients]
    weights = weighted(base, models, coefficients)
    refuse_problems(base, models)
    recipe = Combination(base, Linear(lambda tensor: weights))
    return write_checkpoint(base, recipe, sink, shard_size=shard_size, threads=threads, progress=progress)
