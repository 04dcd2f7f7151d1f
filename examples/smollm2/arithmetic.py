"""A baseline for the evolution: task arithmetic, base + s × the sum of all adapters, s tuned on the search's samples.

    python -m examples.smollm2.arithmetic [--scales 0.33 0.5 0.75 1]

scores each scale on the search split of examples/smollm2/adapters.yaml, and the best one on the held-out split, with
the evolution's own engine, tasks and samples. Prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Engine, Sampling
from cycleqd.evaluation.evaluator import evaluate_jobs
from cycleqd.evaluation.jobs import Job
from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Workspace, load_task
from cycleqd.search.config import Config, load
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.lora import open_adapter
from cycleqd.weights.plain_adapter import Factors, write_adapter

CONFIG = Path(__file__).with_name("adapters.yaml")


def main() -> None:
    """Score the scales, then the best one on the samples that were held out."""
    parser = argparse.ArgumentParser(description="Score base + s × the sum of the adapters.")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.33, 0.5, 0.75, 1.0])
    scales = parser.parse_args().scales
    config = load(CONFIG)
    settings = engines.EngineSettings(dtype=config.evaluation.dtype, threads=config.evaluation.threads)
    engine = engines.create(config.evaluation.engine, settings)
    print("| scale | split | " + " | ".join(config.search_tasks) + " | average |")
    print("|---|---|" + "---|" * (len(config.search_tasks) + 1))
    with tempfile.TemporaryDirectory() as scratch:
        found = {scale: row(engine, config, Path(scratch), scale, "search") for scale in scales}
        row(engine, config, Path(scratch), max(found, key=lambda scale: found[scale]), "test")
    engine.close()


def row(engine: Engine, config: Config, scratch: Path, scale: float, split: Literal["search", "test"]) -> float:
    """Score one scale on all tasks, print a line of the table, and return the average.

    Args:
        engine: Any.
        config: The evolution's.
        scratch: An empty folder, or one from an earlier call.
        scale: Of the sum.
        split: Which samples.
    """
    adapter = summed(config, scratch / f"sum-{scale}", scale)
    engine.adapt([adapter])
    engine.load(Path(config.models.base), "base")
    scores = dict.fromkeys(config.search_tasks, 0.0)
    with ExitStack() as stack:
        jobs = []
        for name in scores:
            task, folder = config.tasks[name], scratch / f"{split}-{scale}-{name}"
            folder.mkdir()
            opened = stack.enter_context(load_task(task.class_)(task.settings, Workspace(folder, config.place.workers)))
            samples = choose(opened.load(Path(task.data)), task.split, split)
            jobs.append(Job(opened, samples, Sampling(task.generation.max_tokens), adapter.digest, name))
        evaluate_jobs(
            engine,
            jobs,
            lambda number, found: scores.update({jobs[number].label: found.score}),
            workers=config.place.workers,
        )
    average = sum(scores.values()) / len(scores)
    cells = [f"{100 * score:.1f}" for score in (*scores.values(), average)]
    print("| " + " | ".join([str(scale), split, *cells]) + " |", flush=True)
    return average


def summed(config: Config, folder: Path, scale: float) -> Adapter:
    """Write s × the sum of the experts' adapters as one adapter: their B and A side by side, exact.

    Args:
        config: It names base and experts.
        folder: The new adapter's; kept if it is there.
        scale: s.
    """
    base = open_checkpoint(LocalSource(config.models.base))
    experts = [open_adapter(LocalSource(e.path), base) for e in config.models.experts.values()]
    names = sorted({name for expert in experts for name in expert.matrices})
    matrices: dict[str, Factors] = {}
    for name in names:
        factors = [expert.factors(name) for expert in experts]
        matrices[name] = torch.cat([scale * b for b, _ in factors], 1), torch.cat([a for _, a in factors])
    if not folder.exists():
        folder.mkdir()
        write_adapter(LocalSink(folder), matrices, config.models.base)
    return Adapter(f"sum-{scale}", folder)


if __name__ == "__main__":
    main()
