"""Methods x seeds on the tiny suite at equal evaluations: does the order of the paper's ablation show?

    make study        (python -m benchmarks.study [--seeds N] [--evaluations N] [--items N] [--jobs N])

Every method is a configuration of the same algorithm (paper, table 2, and the baselines); models, evaluators and engine
are the product's. S3, MLflow and KFP, which change no score, are left out, and a reply that a sample has had before is
not run again: a single-round verdict depends on the reply alone. The search sees one half of the items; the table shows
the other half. "Final model" is the softmax aggregate. Finished (method, seed) pairs are kept in .cycleqd/study, so an
interrupted study goes on.

Writes docs/study/{results.json, table.md, fronts.png}.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.landscape.variants import methods
from benchmarks.study_results import draw_fronts, table
from cycleqd.evaluation.engines import Engine, EngineSettings, Sampling, create
from cycleqd.evaluation.evaluator import Evaluation, evaluate
from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace, load_task
from cycleqd.search import measures
from cycleqd.search import state as states
from cycleqd.search.config import Config, load, parse
from cycleqd.search.operators import Drawn
from cycleqd.search.records import ModelRef, Scored
from cycleqd.weights.aggregate import combine
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.merge import merge

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".cycleqd" / "study"
OUT = ROOT / "docs" / "study"

RANDOM = {"kind": "random"}
SVD = {"kind": "svd", "mode": "rescale", "w_max": 3.0}
"""The mutation of every method that does not say otherwise: what docs/study.md was measured with."""
METHODS: dict[str, dict[str, Any]] = {
    "fixed axis, no mutation": {"focus": "fixed", "parents": RANDOM, "mutation": {"kind": "none"}},
    "cyclic, no mutation": {"parents": RANDOM, "mutation": {"kind": "none"}},
    "cyclic, Gaussian": {"parents": RANDOM, "mutation": {"kind": "gaussian"}},
    "cyclic, SVD": {"parents": RANDOM},
    "CycleQD (cyclic, SVD, elite sampling)": {},
    "CycleQD, w_max 2": {"mutation": {**SVD, "w_max": 2.0}},
    "NSGA-II": {"algorithm": "nsga2", "population": 8},
    "Lexicase": {"algorithm": "lexicase", "population": 8},
    **{
        name: {key: value for key, value in methods()[name].items() if key not in ("generations", "grid", "final")}
        for name in ("random-search", "task-arithmetic", "task-arithmetic-experts", "cmaes", "cmaes-layers")
    },
}
"""The last ones are those of examples/methods."""


class Replayed(Episode):
    """An episode of one round whose task is asked only for a reply that its sample has not had."""

    def __init__(self, task: Remembering, sample: Sample, messages: Sequence[Message]) -> None:
        super().__init__(sample, messages)
        self.task = task
        self.inner: Episode | None = None

    def next(self, reply: str) -> None:
        """Have the reply run by the wrapped task, unless its verdict is remembered. ValueError where it asks on."""
        self.replies.append(reply)
        if (self.sample.id, reply) not in self.task.verdicts:
            self.inner = self.task.inner.start(self.sample)
            if self.inner.next(reply) is not None:
                raise ValueError("the study's tasks have one round")

    def close(self) -> None:
        """Close the wrapped episode, where one was needed."""
        if self.inner is not None:
            self.inner.close()


class Remembering(Task):
    """A task that remembers its verdicts by sample and reply; time-outs, which a second run may not repeat, are not."""

    def __init__(self, inner: Task) -> None:
        super().__init__(inner.settings, inner.workspace)
        self.inner = inner
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.known = 0
        self.prompts: dict[str, list[Message]] = {}

    def load(self, data: Path) -> Sequence[Sample]:
        """The wrapped task's samples."""
        return self.inner.load(data)

    def start(self, sample: Sample) -> Episode:
        """An episode with the wrapped task's prompt, which is asked for once a sample."""
        if sample.id not in self.prompts:
            first = self.inner.start(sample)
            self.prompts[sample.id] = list(first.messages)
            first.close()
        return Replayed(self, sample, self.prompts[sample.id])

    def verdict(self, episode: Episode) -> Verdict:
        """The remembered verdict, else the wrapped task's, remembered unless it is a time-out."""
        assert isinstance(episode, Replayed)
        key = (episode.sample.id, episode.replies[-1])
        if key not in self.verdicts:
            assert episode.inner is not None
            verdict = self.inner.verdict(episode.inner)
            if verdict.outcome is Outcome.TIMEOUT:
                return verdict
            self.verdicts[key] = verdict
        return self.verdicts[key]

    def recall(self, folder: Path) -> None:
        """Take over the verdicts that earlier runs left in a folder."""
        for path in sorted(folder.glob("*.json")):
            for sample, reply, outcome in json.loads(path.read_text()):
                self.verdicts[sample, reply] = Verdict(Outcome(outcome), "judged before")
        self.known = len(self.verdicts)

    def keep(self, path: Path) -> None:
        """Leave the new verdicts to later runs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = list(self.verdicts.items())[self.known :]
        path.with_suffix(".partial").write_text(json.dumps([[*key, verdict.outcome.value] for key, verdict in new]))
        path.with_suffix(".partial").rename(path)


class Bench:
    """The tiny suite, open: scores any checkpoint folder on the search half or the fresh half."""

    def __init__(self, config: Config, engine: Engine, tasks: Mapping[str, Remembering]) -> None:
        self.config, self.engine, self.tasks = config, engine, tasks
        loaded = {name: task.load(Path(config.tasks[name].data)) for name, task in tasks.items()}
        self.samples = {
            part: {name: choose(loaded[name], config.tasks[name].split, part) for name in tasks}
            for part in ("search", "test")
        }

    def evaluated(self, folder: Path, digest: str, part: str) -> dict[str, Evaluation]:
        """By task."""
        self.engine.load(folder, digest)
        found = {}
        for name, task in self.tasks.items():
            sampling = Sampling(self.config.tasks[name].generation.max_tokens)
            found[name] = evaluate(self.engine, task, self.samples[part][name], sampling, workers=2)
        return found

    def scores(self, folder: Path, digest: str, part: str) -> dict[str, float]:
        """Task → share of samples passed."""
        return {name: found.score for name, found in self.evaluated(folder, digest, part).items()}


@contextmanager
def bench(config: Config, verdicts: Path) -> Iterator[Bench]:
    """Open the suite: one engine, one MariaDB; `verdicts` holds what was judged before."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = {}
        for name in config.search_tasks:
            wanted = config.tasks[name]
            inner = load_task(wanted.class_)(wanted.settings, Workspace(scratch / name, workers=2))
            (scratch / name).mkdir()
            tasks[name] = Remembering(stack.enter_context(inner))
            tasks[name].recall(verdicts / name)
        engine = create("transformers", EngineSettings(dtype="float32", threads=1, device="cpu"))
        stack.callback(engine.close)
        yield Bench(config, engine, tasks)


class Run:
    """One evolution of one method with one seed, its models in a folder."""

    def __init__(self, config: Config, opened: Bench, folder: Path) -> None:
        self.config, self.bench, self.folder = config, opened, folder
        self.folders: dict[str, Path] = {}
        experts = [f"expert-{name}" for name in config.models.experts]
        paths = [config.models.base, *(expert.path for expert in config.models.experts.values())]
        for name, path in zip(["base", *experts], paths, strict=True):
            self.folders[name] = Path(path)
        self.base = open_checkpoint(LocalSource(self.folders["base"]))
        refs = [ModelRef(name, f"given-{name}") for name in ["base", *experts]]
        base, *scored = [self.scored(ref) for ref in refs]
        self.state = states.seeded(config, base, scored)

    def scored(self, ref: ModelRef) -> Scored:
        """The model with its scores and verdicts on the search items."""
        found = self.bench.evaluated(self.folders[ref.id], ref.digest, "search")
        verdicts = {name: tuple(one.outcome == "passed" for one in each.records) for name, each in found.items()}
        return Scored(ref, {name: each.score for name, each in found.items()}, verdicts)

    def opened(self, name: str) -> Checkpoint:
        """The checkpoint of one of the run's models, by id."""
        return open_checkpoint(LocalSource(self.folders[name]))

    def generation(self) -> None:
        """Select, merge and mutate, evaluate, update."""
        plan = states.planned(self.config, self.state)
        scored = []
        for child in plan.children:
            self.folders[child.id] = self.folder / child.id
            parents = [self.opened(parent.id) for parent in child.parents]
            written = merge(
                self.base,
                parents,
                Drawn(self.config.method.crossover, child.crossover),
                LocalSink(self.folders[child.id]),
                mutation=Drawn(self.config.method.mutation, child.mutation),
                threads=1,
            )
            scored.append(self.scored(ModelRef(child.id, written.digest)))
        self.state = states.updated(self.config, self.state, plan, scored)

    def fresh(self, name: str, recipe: Sequence[tuple[ModelRef, float]]) -> dict[str, float]:
        """Scores of a combination of models on the fresh items."""
        folder = self.folder / name
        models, shares = [self.opened(ref.id) for ref, _ in recipe], [share for _, share in recipe]
        written = combine(self.base, models, shares, LocalSink(folder), threads=1)
        return self.bench.scores(folder, written.digest, "test")


def configured(method: Mapping[str, Any], seed: int, evaluations: int, items: int) -> Config:
    """The demo's configuration with another method, more items and no report-only task."""
    tree = copy.deepcopy(load(ROOT / "examples/tiny/config.yaml").model_dump(mode="json", by_alias=True))
    tree["seed"] = seed
    tree["tasks"] = {name: task for name, task in tree["tasks"].items() if not task["report_only"]}
    for name, task in tree["tasks"].items():
        task["data"] = str(HOME / "tasks" / f"{name}.{'json' if name == 'os' else 'jsonl'}")
        task["split"] = {"share": 0.5, "search_samples": items, "test_samples": items}
    children = tree["method"]["children"]
    tree["method"] |= {"final": {"kind": "softmax"}, "mutation": SVD}
    tree["method"] |= {"generations": math.ceil(evaluations / children), "stop": {"evaluations": evaluations}}
    tree["method"] |= method
    return parse(tree, "study")


def one(name: str, seed: int, evaluations: int, items: int) -> dict[str, Any]:
    """Run one method with one seed; all figures of it."""
    config = configured(METHODS[name], seed, evaluations, items)
    verdicts = HOME / f"verdicts-{items}"
    with tempfile.TemporaryDirectory() as scratch, bench(config, verdicts) as opened:
        run = Run(config, opened, Path(scratch))
        while states.should_stop(config, run.state) is None:
            run.generation()
        state = run.state
        experts = [(expert.model, 1 / len(state.experts)) for expert in state.experts]
        naive_folder = Path(scratch) / "naive-search"
        combine(run.base, [run.opened(e.id) for e, _ in experts], [s for _, s in experts], LocalSink(naive_folder))
        naive = opened.scores(naive_folder, "naive", "search")
        best = states.best_average(state).model
        found = {
            "method": name,
            "seed": seed,
            "final": run.fresh("final", states.final_recipe(config, state)),
            "best": run.fresh("best", [(best, 1.0)]),
            "naive": run.fresh("naive", experts),
            "experts": {e.model.id: opened.scores(run.folders[e.model.id], e.model.id, "test") for e in state.experts},
            "base": opened.scores(run.folders["base"], "base-again", "test"),
            "measures": measures.measure(state, naive=naive),
            "front": [dict(point.scores) for point in measures.front_of_all(state)],
        }
        for task_name, task in opened.tasks.items():
            task.keep(verdicts / task_name / f"{name.replace(' ', '-')}-{seed}.json")
        return found


def prepare(items: int) -> None:
    """The demo's models, and enough items for two disjoint halves."""
    models = ROOT / ".cycleqd" / "tiny" / "models"
    for module, out, *extra in (
        ("examples.tiny.make_models", models),
        ("examples.tiny.make_tasks", HOME / "tasks", "--items", str(2 * items)),
    ):
        subprocess.run([sys.executable, "-m", module, str(out), *extra], check=True, cwd=ROOT)


def main() -> None:
    """Run every method and seed that has no result yet, in `--jobs` processes; write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=24, help="children a run")
    parser.add_argument("--items", type=int, default=200, help="search items a task, and as many fresh ones")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    prepare(arguments.items)
    kept = HOME / f"{arguments.evaluations}-{arguments.items}"
    kept.mkdir(parents=True, exist_ok=True)
    wanted = [(name, seed) for seed in range(arguments.seeds) for name in METHODS]
    files = {pair: kept / f"{list(METHODS).index(pair[0])}-{pair[1]}.json" for pair in wanted}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        running = {
            pool.submit(one, *pair, arguments.evaluations, arguments.items): pair
            for pair in wanted
            if not files[pair].exists()
        }
        for done in as_completed(running):
            path = files[running[done]]
            path.with_suffix(".partial").write_text(json.dumps(done.result(), indent=1))
            path.with_suffix(".partial").rename(path)
            print(f"{running[done][0]}, seed {running[done][1]}: done", flush=True)
    results = [json.loads(files[pair].read_text()) for pair in wanted]
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUT / "table.md").write_text(table(list(METHODS), results))
    draw_fronts(results, OUT / "fronts.png")
    print(table(list(METHODS), results))


if __name__ == "__main__":
    main()
