"""What is logged to MLflow: what each stage's record adds to the evolution's runs.

Reads records, computes nothing but averages. Every method may be repeated, and finds its runs whichever were logged
before it.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from cycleqd.search.config import Config
from cycleqd.search.measures import measure
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_state, need_head, need_plan
from cycleqd.storage.frozen import changes, flat
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_record, need_result, read_result
from cycleqd.storage.settings import Settings
from cycleqd.storage.tuned import find_tuned
from cycleqd.tracking.models import find_model, link_model, put_out, register
from cycleqd.tracking.runs import TrackedRuns, selection
from cycleqd.tracking.scores import summary
from cycleqd.tracking.tags import checkpoint_tags, combined_tags, dataset, lineage_params, where_tags
from cycleqd.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Dataset


class Logbook:
    """The pages of an evolution in MLflow."""

    def __init__(self, settings: Settings, store: Store, config: Config) -> None:
        """Ask nothing yet.

        Args:
            settings: Where MLflow is.
            store: Objects of the evolution.
            config: The frozen configuration.
        """
        self.store, self.config, self.tracker = store, config, Tracker(settings)
        self.runs = TrackedRuns(self.tracker, store, config)
        self._models: dict[tuple[str, str], str | None] = {}
        self._whole: set[tuple[str, str]] = set()

    def log(self, folder: str) -> None:
        """Log a record.

        Args:
            folder: Folder of the stage that wrote it; of a generation, for its plan.
        """
        number = layout.generation_of(folder)
        match folder.split("/"):
            case [layout.SEED]:
                self._seed()
            case [layout.SEED, "update"]:
                self._update(-1)
            case ["generations", _] if number is not None:
                self._generation(number)
            case ["generations", _, "update"] if number is not None:
                self._update(number)
            case [layout.RESCORINGS, _, "update"]:
                self._snapshot()
            case [layout.EXTENSIONS, _]:
                self._extension(folder)
            case _ if folder == layout.TUNED:
                self.tracker.log(self.runs.evolution, time=0, tags={"cycleqd.tuned": str(find_tuned(self.store))})
            case [*_, model, "evaluations", task, split]:
                self._evaluation(model, task, split)
            case [_, model, "make"] if self.runs.model(model) is None:
                self._part(model)
            case [*_, model, stage]:
                self._making(model, stage)

    def _done(self, folder: str) -> tuple[JSON, JSON]:
        """A stage's result and its run.json."""
        return need_result(self.store, folder), self.store.get_json(layout.run(folder))

    def _seed(self) -> None:
        """The configuration and the data on the evolution's run."""
        self.runs.open(layout.SEED_MLFLOW)
        (body, run), config, evolution = self._done(layout.SEED), self.config, self.runs.evolution
        params = flat(config.frozen()["method"], "method") | flat(config.frozen()["evaluation"], "evaluation")
        params |= {
            "seed": config.seed,
            "tasks": ", ".join(config.search_tasks),
            "experts": ", ".join(config.models.experts),
            "weights": config.models.weights,
        }
        tasks = body["outputs"]["tasks"]
        tags = {"cycleqd.digest.config": body["inputs"]["config"], "cycleqd.url": self.store.url(""), **where_tags(run)}
        tags |= {f"cycleqd.digest.task.{name}": task["data"]["digest"] for name, task in tasks.items()}
        metrics = {f"seconds/seed/{part}": value for part, value in run["seconds"].items()}
        self.tracker.log(evolution, time=run["started"], params=params, tags=tags, metrics=metrics)
        self.tracker.text(evolution, "config.json", self.store.get(layout.CONFIG).decode())
        data = {name: task["data"]["digest"] for name, task in tasks.items()}
        used = [dataset(name, self.store.url(f"{layout.task(name)}/data"), sha256, {}) for name, sha256 in data.items()]
        self.tracker.data(evolution, used, "evaluation")

    def _extension(self, folder: str) -> None:
        """What was changed of the configuration after seeding, in words on the evolution's run."""
        record, run = need_record(self.store, folder), self.store.get_json(layout.run(folder))
        tags = {f"cycleqd.extension.{record.sha256[:12]}": "; ".join(changes(record))}
        self.tracker.log(self.runs.evolution, time=run["started"], tags=tags)

    def _generation(self, number: int) -> None:
        """A generation's run and its children's, with their whole lineage."""
        self.runs.open(layout.mlflow(number))
        run = selection(self.store, number)
        self.tracker.log(self.runs.generation(number), time=run["started"], tags=where_tags(run))
        for child in need_plan(self.store, number).children:
            self.tracker.log(self._run(child.id), time=run["started"], params=lineage_params(child))

    def _run(self, model: str) -> str:
        """The id of the run of a model that has one."""
        found = self.runs.model(model)
        assert found is not None, model
        return found

    def _part(self, model: str) -> None:
        """What was made of the experts for a search in the span: the basis, and how much an adapter keeps."""
        body, run = self._done(layout.stage(model, "make"))
        made = body["outputs"]["checkpoint"]
        if model == layout.BASIS:
            tags = {"cycleqd.digest.basis": made["digest"], **where_tags(run)}
            self.tracker.log(self.runs.evolution, time=run["started"], tags=tags, metrics={"basis_bytes": made["size"]})
        elif model.startswith("adapter-"):
            kept = {"extracted/kept": body["outputs"]["kept"]["total"]}
            self.tracker.log(self._run(f"expert-{model.removeprefix('adapter-')}"), time=run["started"], metrics=kept)

    def _making(self, model: str, stage: str) -> None:
        """Digest, bytes, seconds and place of a model's making on its run, and the checkpoint as a logged model."""
        body, run = self._done(layout.stage(model, stage))
        made, run_id = body["outputs"].get("checkpoint"), self._run(model)
        metrics = {f"seconds/{stage}/{part}": value for part, value in run["seconds"].items()}
        where = {} if made is None else checkpoint_tags(self.store, model, made)
        tags: dict[str, object] = {**where_tags(run), **where}
        if made is not None:
            metrics["bytes"] = made["size"]
        if "adapter" in body["inputs"]:
            tags["cycleqd.digest.adapter"] = body["inputs"]["adapter"]["digest"]
        if layout.is_combined(model):
            tags |= combined_tags(body["inputs"])
        self.tracker.log(run_id, time=run["started"], metrics=metrics, tags=tags)
        if made is not None:
            kind = "child" if layout.child_generation(model) is not None else model.partition("-")[0]
            links = {"cycleqd.model": model, **where}
            linked = link_model(self.tracker, self.runs.experiment, run_id, model, made["digest"], links, kind)
            self._models[model, made["digest"]] = linked
            if model == "final":
                self._register(linked, body)
                put_out(self.tracker, self.runs.evolution, linked)
        if layout.is_combined(model):
            self.end(model)

    def _register(self, linked: str, body: JSON) -> None:
        """The final model as a version of the registered model of the evolution's name.

        In the span it is its PEFT folder, or the full checkpoint where no adapter is the same model.
        """
        made, files, folder = body["outputs"], body["outputs"]["checkpoint"], layout.checkpoint("final")
        tags = {
            "cycleqd.url": self.store.url(""),
            "cycleqd.model": "final",
            "cycleqd.digest.base": body["inputs"]["base"]["digest"],
            **combined_tags(body["inputs"]),
        }
        if self.config.in_span:
            tags |= {"cycleqd.digest.core": files["digest"], "cycleqd.scored_as": "final"}
            form = "full" if "full" in made else "adapter"
            files, folder = made[form], (layout.full if form == "full" else layout.adapter)("final")
        url, parents = self.store.url(folder), tags["cycleqd.parents"].replace(",", ", ")
        about = f"The final model of CycleQD evolution `{self.config.name}`, made of {parents}. Files: `{url}`"
        run = self._run("final")
        register(self.tracker, self.config.name, about, run, url, files["digest"], tags, linked)

    def _evaluation(self, model: str, task: str, split: str) -> None:
        """Score, standard error, outcomes and groups on the model's run and its logged model.

        The average over the groups counts each of them the same, however many samples it has (AgentBench's DB score).
        """
        body, run = self._done(layout.evaluation(model, task, split))
        outputs, groups = body["outputs"], body["outputs"]["groups"]
        metrics = {
            f"{split}_score/{task}": outputs["score"],
            f"{split}_stderr/{task}": outputs["standard_error"],
            **{f"{split}_outcomes/{task}/{name}": count for name, count in outputs["counts"].items()},
            **{f"{split}_groups/{task}/{name}": value for name, value in groups.items()},
            **({f"{split}_group_average/{task}": fmean(groups.values())} if groups else {}),
            **{f"seconds/evaluate_{split}/{task}/{part}": value for part, value in run["seconds"].items()},
        }
        tags = {"cycleqd.engine": outputs["engine"], **where_tags(run, f".{split}.{task}")}
        linked = self._linked(model, body["inputs"]["model"])
        self.tracker.log(self._run(model), time=run["started"], metrics=metrics, tags=tags, model=linked)
        if (model, split) not in self._whole:  # what a task scored is all recorded before it logs any of it
            self._whole.add((model, split))
            self._scored(model, split, linked)

    def _linked(self, model: str, digest: str) -> str | None:
        """The id of a checkpoint's logged model."""
        if (model, digest) not in self._models:
            self._models[model, digest] = find_model(self.tracker, self.runs.experiment, model, digest)
        return self._models[model, digest]

    def _scored(self, model: str, split: str, linked: str | None) -> None:
        """Average and worst task, once all tasks are scored; the data that scores come from."""
        run = self._run(model)
        whole = summary(self.store, self.config, model, split)
        if whole is not None:
            named = {f"cycleqd.{split}_worst_task": whole.worst_task}
            self.tracker.log(run, time=whole.time, metrics=whole.metrics(split), tags=named, model=linked)
        found = {task: read_result(self.store, layout.evaluation(model, task, split)) for task in self.config.tasks}
        used = [self._dataset(task, body, split) for task, body in found.items() if body is not None]
        self.tracker.data(run, used, split)
        if layout.is_combined(model) or self.store.exists(layout.result(_offer(model))):
            self.end(model)

    def _dataset(self, task: str, body: JSON, split: str) -> Dataset:
        """The samples of a task that a score comes from; the whole digest is in the profile."""
        profile = {"samples": body["outputs"]["count"], "sample_ids": body["outputs"]["samples"]}
        return dataset(f"{task}/{split}", self.store.url(f"{layout.task(task)}/data"), body["inputs"]["data"], profile)

    def end(self, model: str) -> int:
        """End a model's run when the last of its work ended; that moment, in milliseconds since the epoch.

        Args:
            model: Id of one that was offered to the archives, or is a combined one.
        """
        folders = [*layout.makers(model), *([] if layout.is_combined(model) else [_offer(model)])]
        folders += [layout.evaluation(model, task, split) for task in self.config.tasks for split in ("search", "test")]
        runs = [run for run in map(self.store.find_json, map(layout.run, folders)) if run is not None]
        moment: int = max(run["finished"] for run in runs)
        self.tracker.end(self._run(model), moment)
        return moment

    def _update(self, generation: int) -> None:
        """The curves' next point, the snapshot and its heatmaps; ends the runs of the generation and its models."""
        from cycleqd.report import heatmaps

        (body, run), tracker, evolution = self._done(layout.update(generation)), self.tracker, self.runs.evolution
        number, time = body["outputs"]["snapshot"], run["started"]
        state = load_state(self.store, number)
        measures = measure(state)
        tracker.log(evolution, time=time, step=number, metrics=measures)
        key = layout.snapshot(number)
        tracker.text(evolution, key, self.store.get(key).decode())
        tracker.picture(evolution, f"heatmaps/{number:06d}.png", heatmaps.archives(state))
        self._snapshot()
        for model, entered in body["outputs"]["entered"].items():
            tags = {"cycleqd.entered": ", ".join(entered) or "no archive"}
            tracker.log(self._run(model), time=time, tags=tags)
            self.end(model)
        if generation >= 0:
            own = self.runs.generation(generation)
            seconds = {f"seconds/update/{part}": value for part, value in run["seconds"].items()}
            tracker.log(own, time=time, step=number, metrics={**measures, **seconds}, tags=where_tags(run))
            tracker.end(own, run["finished"])
        else:
            for model in self.config.extracted:  # they are no members of archives
                self.end(model)

    def _snapshot(self) -> None:
        """Which snapshot is the current one: HEAD's, which another process may have moved on."""
        head, evolution = need_head(self.store), self.runs.evolution
        run = self.store.get_json(layout.run(layout.maker(*head.position)))
        tags = {"cycleqd.snapshot": head.snapshot, "cycleqd.snapshot_digest": head.sha256}
        self.tracker.log(evolution, time=run["started"], tags=tags)
        key = layout.snapshot(*head.position)
        self.tracker.text(evolution, key, self.store.get(key).decode())


def _offer(model: str) -> str:
    """The folder of the update that offers a model to the archives."""
    number = layout.child_generation(model)
    return layout.update(-1 if number is None else number)
