"""The audit of models: who made them from what, back to the base and the experts, every digest checked against S3.

The chain is followed through sealed records; a broken seal ends it at once (IntegrityError), as nothing behind it can
be believed. What the records name is then compared: with one another, with the bytes in S3, with the tags in MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from cycleqd.evaluation.records import TRANSCRIPTS
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, ModelRef
from cycleqd.storage import layout
from cycleqd.storage.cleaning import needed
from cycleqd.storage.evolution import core_key, current, find_child, manifest, manifest_from, need_plan
from cycleqd.storage.family import Family, family
from cycleqd.storage.frozen import extensions, task_files
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Record, need_record, need_result, read_result
from cycleqd.tracking.tags import ids_of, model_key
from cycleqd.tracking.tracker import Tracker

_WHERE = ("kfp_run", "kfp_pod", "image", "code_version", "host", "started", "finished")
_WORKERS = 4  # objects that are hashed at once
_RUN = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Work:
    """One stage's work: its record and that record's own sha256, what it read and wrote, where it was done."""

    stage: str
    record: str
    sha256: str
    inputs: JSON
    outputs: JSON
    where: JSON

    def reads(self) -> dict[str, str]:
        """What the work was computed from: name → sha256, a model's being its checkpoint's digest."""
        given = self.inputs
        if self.stage in ("merge", "mutate"):
            models = [given["child"]["base"], *given["child"]["parents"]]
            return {ref["id"]: ref["digest"] for ref in models} | {k: given[k] for k in ("merged",) if k in given}
        if self.stage == "basis":
            refs = [ref for ref in given.values() if isinstance(ref, dict)]
            refs += [*given.get("adapters", []), *given.get("full", [])]
            return {ref["id"]: ref["digest"] for ref in refs}
        if self.stage == "aggregate":
            return {ref["id"]: ref["digest"] for ref in (given["base"], *given["models"])}
        if self.stage == "evaluate":
            named = {"model": given["model"], "data": given["data"], "plug-in": given["plugin"]}
        elif self.stage == "update_archives":
            named = {"snapshot": given["snapshot"], **{f"scores {t}": d for t, d in given["evaluations"].items()}}
        else:
            named = {"configuration": given["config"]}
        return {name: sha256 for name, sha256 in named.items() if sha256}

    def writes(self) -> dict[str, str]:
        """What the work wrote: name → sha256."""
        if self.stage == "evaluate":
            return {"transcripts": self.outputs["transcripts"]["sha256"]}
        if self.stage == "update_archives":
            return {f"snapshot {self.outputs['snapshot']}": self.outputs["sha256"]}
        return {name: made["digest"] for name, made in self.outputs.items() if name in ("checkpoint", "merged")}


@dataclass(frozen=True)
class Link:
    """A model of the chain. `stored` is False when its checkpoint was collected: replay rebuilds it."""

    model: str
    digest: str
    parents: tuple[tuple[str, float], ...]
    mlflow_run: str
    stored: bool
    work: tuple[Work, ...]

    @property
    def making(self) -> Work:
        """The work that wrote the checkpoint."""
        return next(done for done in self.work if "checkpoint" in done.outputs)


@dataclass
class Audit:
    """The chain; `objects`: key → the sha256 that a record names; problems are sentences. `extensions`: records of what
    was changed of the configuration after seeding.
    """

    links: list[Link] = field(default_factory=list)
    objects: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    extensions: list[Record] = field(default_factory=list)

    def names(self, key: str, sha256: str) -> None:
        """Note that a record names an object's sha256; two must name the same.

        Args:
            key: The object's.
            sha256: As the record has it.
        """
        if self.objects.setdefault(key, sha256) != sha256:
            self.problems.append(f"{key} has two recorded digests, {self.objects[key]} and {sha256}: one was replaced")


def resolve(store: Store, tracker: Tracker, name: str) -> list[str]:
    """The ids of the models that a name stands for; none when an id of a run is unknown.

    Args:
        store: The evolution.
        tracker: The MLflow server.
        name: An MLflow run's id, a model's or a generation's; a KFP run's id, for the models whose checkpoints it made;
            or a model's id.
    """
    if not _RUN.fullmatch(name):
        return [name]
    experiment = ids_of(store, "base").experiment
    if not experiment:
        return []
    if "-" in name:
        found = tracker.search(experiment, f"tags.`cycleqd.kfp_run` = '{name}'")
    else:
        found = tracker.search(experiment, f"attributes.run_id = '{name}'")
    tags = [run.data.tags for run in found]
    models = {one["cycleqd.model"] for one in tags if "cycleqd.model" in one}
    if not models and tags and "cycleqd.generation" in tags[0]:
        models = {child.id for child in need_plan(store, int(tags[0]["cycleqd.generation"])).children}
    return sorted(models)


def trace(store: Store, config: Config, models: Sequence[str], pins: Iterable[str]) -> Audit:
    """Follow the records of models and all their ancestors, the base included.

    Args:
        store: The evolution.
        config: As it was frozen.
        models: Ids of models.
        pins: Models that cleaning leaves alone.

    Raises:
        IntegrityError: A record is missing or its seal is broken.
    """
    members = family(store, [*models, "base", *_seeded_beside(store, config)])
    found, seed = Audit(extensions=list(extensions(store, store.get(layout.CONFIG)))), need_result(store, layout.SEED)
    found.names(layout.CONFIG, seed["inputs"]["config"])
    seeded = {**seed["outputs"], "tasks": task_files(store)}
    for task, files in seeded["tasks"].items():
        for name, file in files["data"]["files"].items():
            found.names(f"{layout.task(task)}/data/{name}", file["sha256"])
        if files["plugin"] is not None:
            found.names(f"{layout.task(task)}/plugin.py", files["plugin"]["sha256"])
    for key in config.own_files:
        found.names(key, Path(key).stem)
    head, state = current(store)
    kept = needed(store, config, head.snapshot, state) | set(pins)
    for model in members:
        past = (layout.child_generation(model) or 0) < head.snapshot
        collectable = layout.child_generation(model) is not None and past and model not in kept
        found.links.append(_link(store, model, members, collectable, found))
        found.problems += _contradictions(store, found.links[-1], seeded)
    return found


def _seeded_beside(store: Store, config: Config) -> list[str]:
    """What seeding made and copied for a search in the span: the basis, the experts as they came, their adapters."""
    if not config.in_span:
        return []
    names = [layout.BASIS, *(f"{kind}-{name}" for kind in ("source", "adapter") for name in config.models.experts)]
    return [name for name in names if store.exists(layout.result(layout.stage(name, "make")))]


def _link(store: Store, model: str, members: Family, collectable: bool, found: Audit) -> Link:
    """A model's records; the objects that they name are added to `found`."""
    recorded, keys = manifest(store, model), store.list(layout.home(model))
    files = {f"{layout.checkpoint(model)}/{name}": sha256 for name, sha256 in recorded.digests().items()}
    if recorded.is_core:
        files = {core_key(store, ModelRef(model, recorded.digest)): sha256 for sha256 in files.values()}
    stored = not collectable or any(map(store.exists, files))
    for key, sha256 in files.items() if stored else ():
        found.names(key, sha256)
    work = [_work(store, key.removesuffix("/result.json")) for key in sorted(keys) if key.endswith("/result.json")]
    for done in work:
        if done.stage == "evaluate":
            found.names(f"{done.record.rpartition('/')[0]}/{TRANSCRIPTS}", done.outputs["transcripts"]["sha256"])
        for form, folder in (("adapter", layout.adapter(model)), ("full", layout.full(model))):
            for name, sha256 in manifest_from(done.outputs[form]).digests().items() if form in done.outputs else ():
                found.names(f"{folder}/{name}", sha256)
    work += _archived(store, model, found)
    if model in ("aggregated", "final"):
        claimed = store.get_json(layout.FINAL_PLAN)
        found.names(layout.snapshot(claimed["snapshot"], claimed["edition"]), claimed["sha256"])
    run = ids_of(store, model).runs.get(model_key(model), "")  # a basis or an adapter has none
    return Link(model, recorded.digest, members[model].parents, run, stored, tuple(work))


def _archived(store: Store, model: str, found: Audit) -> list[Work]:
    """The update that offered the model to the archives, as far as it speaks of it, and rescorings, which did so again.

    None while the update is in flight. Of scores that were made anew, those that the last rescoring read stand.
    """
    number = layout.child_generation(model)
    if number is not None:
        found.names(layout.snapshot(number), need_plan(store, number).snapshot)
    folder = layout.update(-1 if number is None else number)
    if layout.is_combined(model) or read_result(store, folder) is None:
        return []
    results = sorted(key for key in store.list(layout.RESCORINGS) if key.endswith("/result.json"))
    works = [_work(store, name) for name in (folder, *(key.removesuffix("/result.json") for key in results))]
    if number is not None:
        found.names(layout.plan(number), works[0].inputs["plan"])
    works = [done for done in works if model in done.inputs["evaluations"]]
    for index, done in enumerate(works):
        found.names(layout.snapshot(done.outputs["snapshot"], done.outputs["edition"]), done.outputs["sha256"])
        evaluations = done.inputs["evaluations"][model] if done is works[-1] else {}
        inputs = {"snapshot": done.inputs["snapshot"], "evaluations": evaluations}
        outputs = {**done.outputs, "entered": done.outputs["entered"][model]}
        works[index] = replace(done, inputs=inputs, outputs=outputs)
    return works


def _work(store: Store, folder: str) -> Work:
    found, run = need_record(store, folder), store.find_json(layout.run(folder)) or {}
    body = found.body
    where = {name: run.get(name, "") for name in _WHERE}
    return Work(body["stage"], layout.result(folder), found.sha256, body["inputs"], body["outputs"], where)


def _contradictions(store: Store, link: Link, seeded: JSON) -> Iterator[str]:
    """Where a model's records say something else than those of what they name."""
    scored = {done.record: done.sha256 for done in link.work}
    for done in link.work:
        claims = list(_named_models(store, done))
        if done.stage == "seed":
            claims.append(("the checkpoint's digest", link.digest, seeded["models"][link.model]["digest"]))
        if done.stage in ("merge", "mutate"):
            number = layout.child_generation(link.model) or 0
            claims.append(("its lineage", done.inputs["child"], find_child(store, link.model, number).to_json()))
        if done.stage == "mutate":
            merged = next(other.writes()["merged"] for other in link.work if other.stage == "merge")
            claims.append(("the digest of what was merged", done.inputs["merged"], merged))
        if done.stage == "evaluate":
            task = seeded["tasks"][done.inputs["task"]]
            plugin = task["plugin"] and task["plugin"]["sha256"]
            claims.append(("the model's digest", done.inputs["model"], link.digest))
            claims.append(("the digest of the task's data", done.inputs["data"], task["data"]["digest"]))
            claims.append(("the digest of the task's plug-in", done.inputs["plugin"], plugin))
        if done.stage == "update_archives":
            for task, sha256 in done.inputs["evaluations"].items():
                record = layout.result(layout.evaluation(link.model, task, "search"))
                claims.append((f"the digest of {store.url(record)}", sha256, scored.get(record, "")))
        for what, here, there in claims:
            if here != there:
                yield f"{store.url(done.record)} gives {what} as {here}, but it is {there}; one of them was replaced"


def _named_models(store: Store, done: Work) -> Iterator[tuple[str, str, str]]:
    """The models that a record was computed from: their digests by the record, and by their own."""
    if done.stage in ("merge", "mutate", "aggregate", "basis"):
        for model, sha256 in done.reads().items():
            if model != "merged":
                yield f"the digest of '{model}'", sha256, manifest(store, model).digest


def verify(store: Store, objects: Mapping[str, str], watch: Callable[[int], None]) -> Iterator[str]:
    """Hash every object; a sentence for each that is missing or differs.

    Args:
        store: The evolution.
        objects: Key → recorded sha256.
        watch: Called with 1 for each object that is done.
    """
    with ThreadPoolExecutor(_WORKERS) as pool:
        for key, found in zip(objects, pool.map(store.sha256, objects), strict=True):
            watch(1)
            if found is None:
                yield f"{store.url(key)} is missing, its recorded sha256 is {objects[key]}: restore it"
            elif found != objects[key]:
                yield f"{store.url(key)} has sha256 {found}, recorded is {objects[key]}; it was altered: restore it"


def compare_tracking(tracker: Tracker, links: Iterable[Link]) -> Iterator[str]:
    """Where MLflow says something else of a model than its records: digest, KFP run and pod, image, code.

    Args:
        tracker: The MLflow server.
        links: The chain.
    """
    for link in (link for link in links if link.mlflow_run):
        tags, where = tracker.tags(link.mlflow_run), link.making.where
        wanted = {"model": link.model, "digest": link.digest, "code": where["code_version"]}
        wanted |= {name: where[name] for name in ("kfp_run", "kfp_pod", "image")}
        for name, value in wanted.items():
            if (tag := tags.get(f"cycleqd.{name}", "")) != value:
                yield (
                    f"MLflow run {link.mlflow_run} of '{link.model}' has cycleqd.{name} '{tag}', recorded is '{value}':"
                    " it was changed in MLflow, or its stage was ended before logging (run that again)"
                )
