"""Scoring of models that have no score yet: what is missing, one engine start for all of it, a record for each.

Every (model, task, split) has a record of its own, so that it does not matter how pairs are grouped into tasks of the
pipeline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from cycleqd.errors import UnavailableError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Chat, Engine, Sampling
from cycleqd.evaluation.evaluator import Evaluation, evaluate_jobs
from cycleqd.evaluation.jobs import Job
from cycleqd.evaluation.records import METHOD_VERSION, NAME, due, inputs_of, write_evaluation
from cycleqd.evaluation.staged import Split, StagedTask
from cycleqd.evaluation.task import Sample, Task
from cycleqd.loading import is_file
from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.adapters import adapter_folders
from cycleqd.storage.cache import CheckpointCache
from cycleqd.storage.cores import load_core
from cycleqd.storage.evolution import manifest, size_in_bytes
from cycleqd.storage.frozen import fetch, task_files
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, find_result
from cycleqd.storage.settings import Settings
from cycleqd.weights.local import LocalSink
from cycleqd.weights.manifest import Manifest


@dataclass(frozen=True)
class Missing:
    """A pair that has no score yet, and the inputs that its record will name."""

    model: str
    task: StagedTask
    inputs: JSON

    def recorded(self, store: Store) -> bool:
        """Whether there is a score now.

        Args:
            store: The evolution's prefix in S3.
        """
        split = self.inputs["split"]
        folder = layout.evaluation(self.model, self.task.name, split)
        return find_result(store, folder, NAME, METHOD_VERSION, self.inputs) is not None


def evaluate_all(
    settings: Settings,
    store: Store,
    config: Config,
    place: Place,
    models: Sequence[str],
    tasks: Sequence[str],
    split: Split,
    anew: bool = False,
) -> None:
    """Write every record that is missing.

    Args:
        settings: Where this machine keeps its cache and temporary files.
        store: The evolution's prefix in S3.
        config: The frozen configuration.
        place: Where and how the work runs.
        models: Ids of models.
        tasks: Names of tasks; every model is scored on each.
        split: Which of the samples.
        anew: Also replace records of another method version (see `due`).
    """
    seeded = task_files(store)
    manifests = {model: manifest(store, model) for model in models}
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=settings.scratch) as folder:
        scratch = Path(folder)
        staged = [StagedTask.load(store, name, config.tasks[name], seeded[name], scratch) for name in tasks]
        missing = []
        for model, task in product(models, staged):
            inputs = inputs_of(config, manifests[model].digest, task, split)
            pair = Missing(model, task, inputs)
            if not pair.recorded(store) if anew else due(store, model, inputs):
                missing.append(pair)
        if missing:
            cache = CheckpointCache(settings.cache, size_in_bytes(place.cache_size))
            Scoring(store, config, place, split, scratch, cache).run(missing, manifests)


@dataclass(frozen=True)
class Bench:
    """What pairs are scored with: an engine, the tasks, entered, and their samples, both by the task's name."""

    engine: Engine
    tasks: Mapping[str, Task]
    samples: Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Scoring:
    """One engine start for all missing pairs: children that are adapters together, then checkpoint after checkpoint.

    A core that keeps what no adapter carries is made a full checkpoint, in the machine's cache.
    """

    store: Store
    config: Config
    place: Place
    split: Split
    scratch: Path
    cache: CheckpointCache

    def run(self, missing: Sequence[Missing], manifests: Mapping[str, Manifest]) -> None:
        """Check everything that can be checked, then start the engine and score.

        Args:
            missing: Model by model.
            manifests: Of the models, by id.
        """
        adapters = {m for m, found in manifests.items() if found.is_core and not self.config.models.keep_dense}
        cores = [pair for pair in missing if pair.model in adapters]
        with ExitStack() as stack:
            bench = self.open(missing, stack)
            if cores:  # first, so that an engine has room for adapters from its start
                with self.known(bench.engine, {pair.model: manifests[pair.model] for pair in cores}) as known:
                    bench.engine.adapt(list(known.values()))
                    self.score(bench, "base", manifest(self.store, "base"), cores, known)
                    bench.engine.adapt(())
            others = [pair for pair in missing if pair.model not in adapters]
            for model, group in groupby(others, key=lambda pair: pair.model):
                self.score(bench, model, manifests[model], list(group))

    @contextmanager
    def known(self, engine: Engine, models: Mapping[str, Manifest]) -> Iterator[Mapping[str, Adapter]]:
        """The adapters of models, by id; a remote engine needs none written, nor any for a core that is zero.

        Args:
            engine: What will use them.
            models: Manifests of models that are cores, by id.
        """
        if engine.remote:
            yield {
                model: Adapter(found.digest, self.scratch, f"{self.store.evolution}/{model}")
                for model, found in models.items()
                if any(bool(c.any()) for c in load_core(self.store, ModelRef(model, found.digest)).matrices.values())
            }
            return
        dtype = self.config.evaluation.dtype
        with adapter_folders(self.store, self.place, models, dtype, self.scratch) as folders:
            yield {model: Adapter(models[model].digest, folder) for model, folder in folders.items()}

    def open(self, missing: Sequence[Missing], stack: ExitStack) -> Bench:
        """The engine, which starts when the first model is loaded, and the tasks.

        Args:
            missing: Pairs whose tasks are opened.
            stack: Closes everything when it is closed.

        Raises:
            UnavailableError: A task misses something on this machine.
        """
        tasks = {pair.task.name: pair.task.open(self.scratch, self.place.workers) for pair in missing}
        refuse_unready(tasks)
        staged = {pair.task.name: pair.task for pair in missing}
        samples = {n: t.samples(self.store, tasks[n], self.split, self.scratch) for n, t in staged.items()}
        engine = self.engine()
        stack.callback(engine.close)
        for task in tasks.values():
            stack.enter_context(task)
        return Bench(engine, tasks, samples)

    def engine(self) -> Engine:
        """The configured engine."""
        wanted = self.config.evaluation
        settings = engines.EngineSettings(
            dtype=wanted.dtype,
            batch_tokens=wanted.batch_tokens,
            threads=wanted.threads,
            max_context=wanted.max_context,
            device=self.place.device,
            server=self.place.server.url,
            gpus=max(1, self.place.evaluate.gpu),
            arguments={**self.place.engine_args.given, **wanted.engine_args.given},
        )
        if is_file(wanted.engine):
            file = wanted.engine.rpartition(":")[0]
            fetch(self.store, file, Path(file).stem, self.scratch)
        return engines.create(wanted.engine, settings, self.scratch)

    def score(
        self,
        bench: Bench,
        model: str,
        found: Manifest,
        pairs: Sequence[Missing],
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        """Load a checkpoint and score it, or adapters of it; each record is written as soon as its last verdict is in.

        Args:
            bench: Engine, tasks and samples.
            model: Id of the checkpoint to load.
            found: The checkpoint's manifest.
            pairs: What to score; those that another process has scored by now are left out.
            adapters: The adapters of the pairs' models, by id; None where the pairs are of the checkpoint itself.
        """
        pairs = [pair for pair in pairs if not pair.recorded(self.store)]
        if not pairs:
            return
        loading = Clock()
        needed = without_weights(found) if bench.engine.remote else found
        with loading.part("load"), self.checkpoint(model, needed) as folder:
            bench.engine.load(folder, found.digest)
        digests = {model: adapter.digest for model, adapter in (adapters or {}).items()}
        jobs = [self.job(bench, pair, digests.get(pair.model)) for pair in pairs]

        def write(number: int, evaluation: Evaluation) -> None:
            pair, clock = pairs[number], Clock()
            clock.seconds = {**loading.seconds, "evaluate": round(evaluation.timings.total, 4)}
            clock.started -= round(1000 * sum(clock.seconds.values()))
            loading.seconds = {}  # the first record's
            write_evaluation(self.store, pair.model, pair.task, pair.inputs, evaluation, bench.engine, clock)

        evaluate_jobs(bench.engine, jobs, write, workers=self.place.workers, counting=counting)

    @contextmanager
    def checkpoint(self, model: str, found: Manifest) -> Iterator[Path]:
        """A model's folder in the machine's cache, fetched, or made where the model is a core.

        Args:
            model: Its id.
            found: Those of its files that are needed.
        """
        if not found.is_core:
            with self.cache.fetch(source(self.store, layout.checkpoint(model), found), found) as fetched:
                yield fetched
            return

        def write(part: Path) -> None:
            from cycleqd.storage.making import write_full

            core = load_core(self.store, ModelRef(model, found.digest))
            shard_size = size_in_bytes(self.config.models.shard_size)
            write_full(self.store, self.place, model, core, LocalSink(part), shard_size, often=True)

        with self.cache.made(found.digest, manifest(self.store, "base").size, write) as made:
            yield made

    def job(self, bench: Bench, pair: Missing, adapter: str | None) -> Job:
        """What the evaluator is asked for a pair.

        Args:
            bench: Engine, tasks and samples.
            pair: A model and a task.
            adapter: Digest of the model's adapter; None where the model is what is loaded.
        """
        how, name = pair.task.config.generation, pair.task.name
        sampling = Sampling(how.max_tokens, how.temperature, how.top_p, how.stop, how.seed)
        label = f"{pair.model} on {name} ({self.split})"
        shown = pair.task.config.chat
        chat = Chat(shown.system, shown.template, shown.prefill)
        return Job(bench.tasks[name], bench.samples[name], sampling, adapter, label, chat, shown.reasoning)


def without_weights(found: Manifest) -> Manifest:
    """Tokenizer and configurations.

    Args:
        found: A checkpoint's files.
    """
    return Manifest({name: entry for name, entry in found.files.items() if not name.endswith(".safetensors")})


def refuse_unready(tasks: Mapping[str, Task]) -> None:
    """Refuse tasks that this machine cannot run.

    Args:
        tasks: By name, not entered yet.

    Raises:
        UnavailableError: Everything that they miss, a line each.
    """
    problems = [f"task '{name}': {problem}" for name, task in tasks.items() for problem in task.preflight()]
    if problems:
        raise UnavailableError("\n".join(problems))
