"""Scoring of models that have no score yet: what is missing, one engine start for all of it, a record for each.

Every (model, task, split) has a record of its own, so that it does not matter how pairs are grouped into tasks of the
pipeline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path

from cycleqd.errors import UnavailableError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines.engine import Engine, Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.records import METHOD_VERSION, NAME, due, inputs_of, write_evaluation
from cycleqd.evaluation.staged import Split, StagedTask
from cycleqd.evaluation.task import Sample, Task
from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.cache import CheckpointCache
from cycleqd.storage.evolution import manifest, size_in_bytes
from cycleqd.storage.models import source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, find_result, need_result
from cycleqd.storage.settings import Settings
from cycleqd.weights.manifest import Manifest


@dataclass(frozen=True)
class Missing:
    """A pair that has no score yet, and the inputs that its record will name."""

    model: str
    task: StagedTask
    inputs: JSON

    def recorded(self, store: Store) -> bool:
        """Whether there is a score now."""
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
    """Write every record that is missing. anew: also those that are there of another method version (see `due`)."""
    seeded = need_result(store, layout.SEED)["outputs"]["tasks"]
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
class Scoring:
    """One engine start: the missing pairs, model by model, weights swapped in between."""

    store: Store
    config: Config
    place: Place
    split: Split
    scratch: Path
    cache: CheckpointCache

    def run(self, missing: Sequence[Missing], manifests: Mapping[str, Manifest]) -> None:
        """Check everything that can be checked, then start the engine and score. Missing pairs come model by model."""
        with ExitStack() as stack:
            tasks = {pair.task.name: pair.task.open(self.scratch, self.place.workers) for pair in missing}
            refuse_unready(tasks)
            samples = {p.task.name: p.task for p in missing}
            chosen = {n: t.samples(self.store, tasks[n], self.split, self.scratch) for n, t in samples.items()}
            engine = self.engine()
            stack.callback(engine.close)
            for task in tasks.values():
                stack.enter_context(task)
            for model, group in groupby(missing, key=lambda pair: pair.model):
                pairs = [pair for pair in group if not pair.recorded(self.store)]  # another process may be ahead
                if not pairs:
                    continue
                clock, found = Clock(), manifests[model]
                stored = source(self.store, layout.checkpoint(model), found)
                with clock.part("load"), ExitStack() as fetched:
                    engine.load(fetched.enter_context(self.cache.fetch(stored, found)), found.digest)
                for pair in pairs:
                    if not pair.recorded(self.store):
                        self.score(engine, pair, tasks[pair.task.name], chosen[pair.task.name], clock)
                        clock = Clock()

    def engine(self) -> Engine:
        """The configured engine; it starts when the first model is loaded."""
        wanted = self.config.evaluation
        return engines.create(
            wanted.engine,
            engines.EngineSettings(
                dtype=wanted.dtype,
                batch_tokens=wanted.batch_tokens,
                threads=wanted.threads,
                max_context=wanted.max_context,
                device=self.place.device,
            ),
        )

    def score(self, engine: Engine, pair: Missing, task: Task, samples: Sequence[Sample], clock: Clock) -> None:
        """Evaluate the loaded model on a task and write the record."""
        how = pair.task.config.generation
        sampling = Sampling(how.max_tokens, how.temperature, how.top_p, how.stop, how.seed)
        shown = partial(counting, f"{pair.model} on {pair.task.name} ({self.split})")
        with clock.part("evaluate"):
            found = evaluate(engine, task, samples, sampling, workers=self.place.workers, counting=shown)
        write_evaluation(self.store, pair.model, pair.task, pair.inputs, found, engine, clock)


def refuse_unready(tasks: Mapping[str, Task]) -> None:
    """Raise UnavailableError with everything that the tasks miss on this machine."""
    problems = [f"task '{name}': {problem}" for name, task in tasks.items() for problem in task.preflight()]
    if problems:
        raise UnavailableError("\n".join(problems))
