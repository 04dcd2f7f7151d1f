"""Which runs an evolution has in MLflow: its own, its generations', its models'.

Their ids are stored in S3, a group at a time: what seeding makes, a generation, what finalising builds. Whoever needs a
run that is not there yet creates its group, from records alone: MLflow may have been away when that was due.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.evolution import need_plan
from cycleqd.storage.objects import Store
from cycleqd.tracking.tags import describe, generation_key, lineage_tags, model_key, model_tags
from cycleqd.tracking.tracker import NOTE, Ids, NewRun, Tracker, load_ids
from cycleqd.tracking.view import TAG, note, view

EVOLUTION = "evolution"
_COMBINED = {
    "naive": "Every expert with the same weight: what evolution is compared with.",
    "aggregated": "The softmax aggregate over the best elites, which is the final model, or is built beside it.",
    "final": "The final model: base + Σ β τ over the best elites, or the single model with the best average.",
}
_TUNED = "Task arithmetic with λ = {:g} for all experts."


class TrackedRuns:
    """The ids of an evolution's runs."""

    def __init__(self, tracker: Tracker, store: Store, config: Config) -> None:
        """Ask nothing yet.

        Args:
            tracker: The MLflow server.
            store: Objects of the evolution.
            config: The frozen configuration.
        """
        self.tracker, self.store, self.config = tracker, store, config
        self._known: dict[str, Ids] = {}

    @property
    def experiment(self) -> str:
        """The id of the experiment."""
        return self._seeded.experiment

    @property
    def evolution(self) -> str:
        """The id of the evolution's own run."""
        return self._seeded.runs[EVOLUTION]

    def generation(self, number: int) -> str:
        """The id of a generation's run.

        Args:
            number: Generation, from 0.
        """
        return self._group(layout.mlflow(number)).runs[generation_key(number)]

    def model(self, model: str) -> str | None:
        """The id of a model's run; None for what has none of its own: a basis, an adapter, an expert as it came.

        Args:
            model: Model id.
        """
        return self._group(layout.mlflow_of(model)).runs.get(model_key(model))

    def open(self, key: str) -> None:
        """Create a group, or take it over, and delete what others created for it.

        Args:
            key: Where its ids are stored.
        """
        self._known[key] = self._create(key)

    @property
    def _seeded(self) -> Ids:
        return self._group(layout.SEED_MLFLOW)

    def _group(self, key: str) -> Ids:
        if key not in self._known:
            self._known[key] = load_ids(self.store, key) or self._create(key)
        return self._known[key]

    def _create(self, key: str) -> Ids:
        if key == layout.SEED_MLFLOW:
            experiment = self.tracker.experiment(self.store, self._about())
            described = {NOTE: note(self._about(), experiment), TAG: view(self.config.search_tasks)}
            self.tracker.describe(experiment, described)
            return self.tracker.create_runs(self.store, key, experiment, self._seeding(), Ids(experiment))
        number = layout.generation_of(key)
        wanted = self._finalising() if number is None else self._generation(number)
        return self.tracker.create_runs(self.store, key, self.experiment, wanted, self._seeded)

    def _about(self) -> str:
        tasks = ", ".join(self.config.search_tasks)
        return f"CycleQD evolution `{self.config.name}` on {tasks}. Objects: `{self.store.url('')}`"

    def _seeding(self) -> list[NewRun]:
        """The evolution, its base and its experts."""
        about, store, config = f"{self._about()}\n\nCurves over generations are here.", self.store, self.config
        started = store.get_json(layout.run(layout.SEED))["started"]
        tags = {"cycleqd.kind": "evolution"}
        runs = [NewRun(EVOLUTION, config.name, about, started, tags)]
        base = model_tags(store, "base", "base")
        runs.append(NewRun(model_key("base"), "base", "The base model.", started, base, EVOLUTION))
        for name, expert in config.models.experts.items():
            model = f"expert-{name}"
            tags = {**model_tags(store, model, "expert"), "cycleqd.task": expert.task}
            about = f"Expert fine-tuned for {expert.task}."
            runs.append(NewRun(model_key(model), model, about, started, tags, EVOLUTION))
        for model in config.extracted:
            about, tags = "The full checkpoint of an expert, from which its adapter was extracted.", {}
            tags = model_tags(store, model, "expert")
            runs.append(NewRun(model_key(model), model, about, started, tags, EVOLUTION))
        return runs

    def _generation(self, number: int) -> list[NewRun]:
        """A generation and its children, with their whole lineage."""
        plan, started = need_plan(self.store, number), selection(self.store, number)["started"]
        focus = ", ".join(dict.fromkeys(task for task in plan.focus if task)) or "population"
        names = ", ".join(child.id for child in plan.children)
        tags = {"cycleqd.kind": "generation", "cycleqd.generation": str(number), "cycleqd.focus": focus}
        about = f"Generation {number}: {names}. Parents from: {focus}."
        key = generation_key(number)
        runs = [NewRun(key, f"generation {number:06d}", about, started, tags, EVOLUTION)]
        for child, task in zip(plan.children, plan.focus, strict=True):
            about = f"{describe(child)} Parents from: {task or 'population'}."
            tags = model_tags(self.store, child.id, "child") | lineage_tags(child)
            tags["cycleqd.focus"] = task or "population"
            runs.append(NewRun(model_key(child.id), child.id, about, started, tags, key))
        return runs

    def _finalising(self) -> Sequence[NewRun]:
        """The combined models, whether or not they were built yet."""
        found = [self.store.find_json(layout.run(layout.stage(model, "make"))) for model in self.config.combined]
        started = min(run["started"] for run in found if run is not None)
        about = _COMBINED | {model: _TUNED.format(value) for model, value in self.config.lambdas.items()}
        return [
            NewRun(model_key(m), m, about[m], started, model_tags(self.store, m, m), EVOLUTION)
            for m in self.config.combined
        ]


def selection(store: Store, number: int) -> JSON:
    """When and where a generation's parents were selected.

    Args:
        store: Objects of the evolution.
        number: Generation, from 0.
    """
    found = store.find_json(layout.run(layout.generation(number)))
    if found is None:  # it was planned before that was recorded: it could begin when the one before it had ended
        found = {"started": store.get_json(layout.run(layout.update(number - 1)))["finished"]}
    return found
