"""Evaluate a model on the three real benchmarks, without a pipeline: one engine, three tasks.

    CYCLEQD_BENCHMARKS=DATA python -m examples.smollm2.evaluate MODEL --engine vllm --out docs/smollm2

DATA holds mbppplus/, agentbench_db/ and agentbench_os/ as upstream publishes them. Prints a table of scores; `--out`
takes the table and a few transcripts of each task.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Engine, Sampling
from cycleqd.evaluation.evaluator import Evaluation, evaluate
from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Workspace, load_task
from cycleqd.search.tasks import SplitConfig

BENCHMARKS = "cycleqd.evaluation.benchmarks"
TASKS = {
    "code": (f"{BENCHMARKS}.code:CodeTask", "mbppplus/MbppPlus-v0.2.0.jsonl.gz", {"judge": "base"}, 256),
    "db": (f"{BENCHMARKS}.db:DbTask", "agentbench_db/data_dbbench_standard_dev.jsonl", {"ids": "task_ids.json"}, 128),
    "os": (f"{BENCHMARKS}.os:OsTask", "agentbench_os/samples.json", {"ids": "task_ids.json"}, 128),
}
"""Class, data below CYCLEQD_BENCHMARKS, settings, and the most tokens of a reply."""
CONTEXT = 4096
SHOWN = 3  # transcripts of each task


def main() -> None:
    """Parse the command line, evaluate the three tasks, print the table and write it where `--out` says."""
    parser = argparse.ArgumentParser(description="Evaluate a model on MBPP+, DBBench and os-interaction.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=40, help="samples of each task (default 40)")
    parser.add_argument("--engine", choices=["auto", "transformers", "vllm"], default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="1 on a machine that others use too")
    parser.add_argument("--out", type=Path, help="folder for scores.md and transcripts")
    options = parser.parse_args()
    engine = engines.create(options.engine, engines.EngineSettings(threads=options.threads, max_context=CONTEXT))
    try:
        began = time.perf_counter()
        engine.load(options.model, "model")
        lines = [
            f"{options.model.name}, {engine.version}, started in {time.perf_counter() - began:.0f} s",
            "",
            "| task | samples | score | standard error | outcomes | rounds | tokens | seconds | of these generating |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in TASKS:
            found = run(engine, name, options.samples, options.workers)
            lines.append(row(name, found))
            print(lines[-1], flush=True)
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / f"{name}.jsonl").write_text(transcripts(found))
    finally:
        engine.close()
    table = "\n".join(lines) + "\n"
    if options.out:
        (options.out / "scores.md").write_text(table)
    print(table)


def run(engine: Engine, name: str, count: int, workers: int) -> Evaluation:
    """Evaluate the loaded model on `count` samples of a task."""
    root = os.environ.get("CYCLEQD_BENCHMARKS")
    if root is None:
        raise InvalidInputError("CYCLEQD_BENCHMARKS is not set; give the folder with the benchmarks' data")
    reference, data, settings, tokens = TASKS[name]
    with tempfile.TemporaryDirectory() as scratch:
        task = load_task(reference)(settings, Workspace(Path(scratch), workers))
        if missing := task.preflight():
            raise UnavailableError("\n".join(missing))
        samples = choose(task.load(Path(root) / data), SplitConfig(share=1, search_samples=count), "search")
        with task:
            return evaluate(engine, task, samples, Sampling(max_tokens=tokens), workers=workers)


def row(name: str, found: Evaluation) -> str:
    """One task as a line of the table in Markdown."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found.counts.items() if count)
    spent = found.timings
    return (
        f"| {name} | {len(found.records)} | {found.score:.3f} | {found.standard_error:.3f} | {outcomes} "
        f"| {spent.rounds} | {found.tokens} | {spent.total:.0f} | {spent.generating:.0f} |"
    )


def transcripts(found: Evaluation) -> str:
    """A few records, one a line: those that passed first, then others."""
    best = sorted(found.records, key=lambda record: record.outcome != "passed")[:SHOWN]
    return "".join(json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in best)


if __name__ == "__main__":
    main()
