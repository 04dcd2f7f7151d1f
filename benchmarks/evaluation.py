"""How much of an evaluation is not generating: engine start and swap, verdicts a second, scaling with workers.

    python -m benchmarks.evaluation verdicts [--items 48] [--workers 1 2 4]
    python -m benchmarks.evaluation engines MODELS [--engines transformers vllm] [--items 192] [--threads 1]

`verdicts` needs no model: an engine that knows the answers replies at once, so all time is the evaluators'. It measures
the tiny tasks and, where CYCLEQD_BENCHMARKS names their data, the three real ones. `engines` takes a folder made by
`python -m examples.tiny.make_models` and evaluates each model in it on the tiny tasks, in one engine. Both print
Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Completion, Engine, Progress, Request, Sampling
from cycleqd.evaluation.evaluator import Evaluation, evaluate
from cycleqd.evaluation.task import Sample, Task, Workspace, load_task
from examples.tiny import make_tasks

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "code": ("code.jsonl", {"prompt": "{request}", "judge": "plus"}),
    "db": ("db.jsonl", {"prompt": "{description}", "max_rounds": 1, "judge": "rows"}),
    "os": ("os.json", {"prompt": "{description}", "max_rounds": 1, "root": "host"}),
}
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "code": ("mbppplus/MbppPlus-v0.2.0.jsonl.gz", {"judge": "plus"}),
    "db": ("agentbench_db/data_dbbench_standard_dev.jsonl", {"ids": "task_ids.json"}),
    "os": ("agentbench_os/samples.json", {"ids": "task_ids.json"}),
}
TINY_TOKENS = 48


class Knowing(Engine):
    """An engine that answers at once: the reference solution where the record has one, else a plausible action."""

    name = "knowing"
    reproducible = True
    version = "1"

    def __init__(self, kind: str, samples: Sequence[Sample]) -> None:
        super().__init__(engines.EngineSettings())
        self.kind, self.samples, self.first = kind, samples, True

    def load(self, folder: Path, digest: str) -> None:
        """Nothing: it knows all answers already."""

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Nothing."""

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """A reply a request: the samples' solutions in the first round, later an action that ends the episode."""
        if self.first:
            self.first = False
            replies = [solution(self.kind, sample) for sample in self.samples]
        else:
            replies = ["Act: answer(5)" if self.kind == "os" else 'Action: Answer\nFinal Answer: ["5"]'] * len(requests)
        return [Completion(reply, "stop", 1, 1) for reply in replies]


def solution(kind: str, sample: Sample) -> str:
    """The first reply to a sample."""
    record = sample.record
    if kind == "code":
        return f"```python\n{record['prompt']}{record['canonical_solution']}\n```"
    if kind == "db":
        query = (record.get("sql") or {}).get("query") or "SELECT 5"
        return f"Action: Operation\n```sql\n{query}\n```"
    return "Act: bash\n```bash\nls /; echo 5 | wc -c\n```"


@contextmanager
def opened(kind: str, settings: dict[str, Any], workers: int) -> Iterator[Task]:
    """The task, entered, with a scratch folder."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        load_task(kind)(settings, Workspace(Path(scratch), workers)) as task,
    ):
        yield task


def verdicts(items: int, workers: Sequence[int]) -> None:
    """Samples a second, from start to verdict, without a model."""
    print("| data | task | samples | workers | seconds | samples a second | ms a sample and worker |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_tasks.main(Path(folder), max(items, 16), 0)
        places = {"tiny": (Path(folder), TINY)}
        if "CYCLEQD_BENCHMARKS" in os.environ:
            places["real"] = (Path(os.environ["CYCLEQD_BENCHMARKS"]), REAL)
        for label, (root, tasks) in places.items():
            for kind, (data, settings) in tasks.items():
                for count in workers:
                    with opened(kind, settings, count) as task:
                        samples = list(task.load(root / data))[:items]
                        evaluate(Knowing(kind, samples[:2]), task, samples[:2], Sampling(8), workers=count)  # warm
                        found = evaluate(Knowing(kind, samples), task, samples, Sampling(8), workers=count)
                    seconds = found.timings.total
                    rate, each = len(samples) / seconds, 1000 * seconds * count / len(samples)
                    print(
                        f"| {label} | {kind} | {len(samples)} | {count} | {seconds:.2f} | {rate:.1f} | {each:.0f} |",
                        flush=True,
                    )


def measure_engines(models: Path, names: Sequence[str], items: int, workers: int, threads: int) -> None:
    """Start-up, swaps, and the share of time that is not generating, over all models of a folder and the tiny tasks."""
    folders = sorted(path for path in models.iterdir() if (path / "config.json").is_file())
    with tempfile.TemporaryDirectory() as data:
        make_tasks.main(Path(data), items, 0)
        for name in names:
            engine = engines.create(name, engines.EngineSettings(device="auto", threads=threads))
            try:
                report(engine, folders, Path(data), workers)
            finally:
                engine.close()


def report(engine: Engine, folders: Sequence[Path], data: Path, workers: int) -> None:
    """Evaluate every folder on every tiny task; print a table, the time of a swap, and the share not generating."""
    loads, rows, spent, generating = [], [], 0.0, 0.0
    for folder in folders:
        began = time.perf_counter()
        engine.load(folder, str(folder))
        loads.append(time.perf_counter() - began)
        for kind, (file, settings) in TINY.items():
            with opened(kind, settings, workers) as task:
                found = evaluate(engine, task, list(task.load(data / file)), Sampling(TINY_TOKENS), workers=workers)
            spent, generating = spent + found.timings.total, generating + found.timings.generating
            rows.append(row(folder.name, kind, found))
    swaps = sum(loads[1:])
    print(f"\n{engine.version}: start {loads[0]:.1f} s, swap {swaps / max(1, len(loads) - 1):.2f} s on average")
    print("\n| model | task | samples | score | tokens | tokens a second | seconds | not generating |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    share = (spent + swaps - generating) / (spent + swaps)
    print(f"\nnot generating, swaps included: {share:.1%} of {spent + swaps:.1f} s", flush=True)


def row(model: str, kind: str, found: Evaluation) -> str:
    """One model and task as a line of the table in Markdown."""
    spent = found.timings
    share = 1 - spent.generating / spent.total
    return (
        f"| {model} | {kind} | {len(found.records)} | {found.score:.3f} | {found.tokens} "
        f"| {found.tokens / spent.generating:.0f} | {spent.total:.2f} | {share:.1%} |"
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    alone = commands.add_parser("verdicts")
    alone.add_argument("--items", type=int, default=48)
    alone.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    whole = commands.add_parser("engines")
    whole.add_argument("models", type=Path)
    whole.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    whole.add_argument("--items", type=int, default=192)
    whole.add_argument("--workers", type=int, default=2)
    whole.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.command == "verdicts":
        verdicts(options.items, options.workers)
    else:
        measure_engines(options.models, options.engines, options.items, options.workers, options.threads)


if __name__ == "__main__":
    main()
