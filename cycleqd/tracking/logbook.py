"""What is logged to MLflow: which runs an evolution has, and what each stage's records add to them.

Reads records, computes nothing but the average over a score's groups. Every function may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from cycleqd.search.config import Config
from cycleqd.search.measures import measure
from cycleqd.search.records import Plan
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import need_head
from cycleqd.storage.frozen import flat
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Record, need_result, provenance, read_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tags import (
    describe,
    digest_tag,
    generation_key,
    ids_of,
    lineage_params,
    lineage_tags,
    model_key,
    model_tags,
    where_tags,
)
from cycleqd.tracking.tracker import Ids, NewRun, Tracker, need_ids

EVOLUTION = "evolution"


def open_evolution(settings: Settings, store: Store, config: Config) -> Ids:
    """Create the experiment and the runs of the evolution, its base and its experts.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        config: The frozen configuration.
    """
    tracker = Tracker(settings)
    tasks = ", ".join(config.search_tasks)
    about = f"CycleQD evolution `{config.name}` on {tasks}. Objects: `{store.url('')}`"
    experiment = tracker.experiment(store, about)
    runs = [
        NewRun(EVOLUTION, config.name, f"{about}\n\nCurves over generations are here.", {"cycleqd.kind": "evolution"}),
        NewRun(model_key("base"), "base", "The base model.", model_tags(store, "base", "base"), EVOLUTION),
    ]
    for name, expert in config.models.experts.items():
        model = f"expert-{name}"
        tags = {**model_tags(store, model, "expert"), "cycleqd.task": expert.task}
        runs.append(NewRun(model_key(model), model, f"Expert fine-tuned for {expert.task}.", tags, EVOLUTION))
    for model in config.extracted:
        about = "The full checkpoint of an expert, from which its adapter was extracted."
        runs.append(NewRun(model_key(model), model, about, model_tags(store, model, "expert"), EVOLUTION))
    return tracker.create_runs(store, layout.SEED_MLFLOW, experiment, runs, Ids(experiment))


def log_seed(settings: Settings, store: Store, config: Config) -> None:
    """Log the configuration on the evolution's run, digests on the models'.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        config: The frozen configuration.
    """
    ids, tracker = open_evolution(settings, store, config), Tracker(settings)
    body, run = need_result(store, layout.SEED), store.get_json(layout.run(layout.SEED))
    outputs, moment = body["outputs"], run["started"]
    params = flat(config.frozen()["method"], "method") | flat(config.frozen()["evaluation"], "evaluation")
    params |= {
        "seed": config.seed,
        "tasks": ", ".join(config.search_tasks),
        "experts": ", ".join(config.models.experts),
    }
    digests = {f"cycleqd.digest.task.{name}": task["data"]["digest"] for name, task in outputs["tasks"].items()}
    tracker.log(
        ids.runs[EVOLUTION],
        time=moment,
        params=params,
        tags={
            "cycleqd.digest.config": body["inputs"]["config"],
            "cycleqd.url": store.url(""),
            **digests,
            **where_tags(run),
        },
        metrics={f"seconds/seed/{part}": value for part, value in run["seconds"].items()},
    )
    tracker.text(ids.runs[EVOLUTION], "config.json", store.get(layout.CONFIG).decode())
    for model, made in outputs["models"].items():
        tags = digest_tag(made) | where_tags(store.get_json(layout.run(layout.stage(model, "make"))))
        if model_key(model) in ids.runs:  # an adapter has no run of its own: its expert has
            tracker.log(ids.runs[model_key(model)], time=moment, tags=tags, params={"bytes": made["size"]})


def log_basis(settings: Settings, store: Store, config: Config) -> None:
    """The basis' digest on the evolution's run; the digests of experts' cores, and what extraction kept, on theirs.

    Args:
        settings: Addresses and credentials.
        store: The evolution.
        config: Its configuration.
    """
    ids, tracker = need_ids(store, layout.SEED_MLFLOW), Tracker(settings)
    folder = layout.stage(layout.BASIS, "make")
    made, run = need_result(store, folder)["outputs"]["checkpoint"], store.get_json(layout.run(folder))
    tags = {"cycleqd.digest.basis": made["digest"], **where_tags(run)}
    tracker.log(ids.runs[EVOLUTION], time=run["started"], tags=tags, params={"basis_bytes": made["size"]})
    for name in config.models.experts:
        folder = layout.stage(f"expert-{name}", "make")
        body, run = need_result(store, folder), store.get_json(layout.run(folder))
        adapter, core = body["inputs"]["adapter"], body["outputs"]["checkpoint"]
        extracted = read_result(store, layout.stage(f"adapter-{name}", "make"))
        tracker.log(
            ids.runs[model_key(f"expert-{name}")],
            time=run["started"],
            tags=digest_tag(core) | where_tags(run) | {"cycleqd.digest.adapter": adapter["digest"]},
            params={"bytes": core["size"]},
            metrics={"extracted/kept": extracted["outputs"]["kept"]["total"]} if extracted else {},
        )


def open_generation(settings: Settings, store: Store, plan: Plan) -> None:
    """Create the runs of a generation and its children, with their whole lineage, and log it.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        plan: The generation's plan.
    """
    tracker, seeded = Tracker(settings), need_ids(store, layout.SEED_MLFLOW)
    number = generation_key(plan.generation)
    focus = ", ".join(dict.fromkeys(task for task in plan.focus if task)) or "population"
    names = ", ".join(child.id for child in plan.children)
    tags = {"cycleqd.kind": "generation", "cycleqd.generation": str(plan.generation), "cycleqd.focus": focus}
    about = f"Generation {plan.generation}: {names}. Parents from: {focus}."
    runs = [NewRun(number, f"generation {plan.generation:06d}", about, tags | where_tags(provenance()), EVOLUTION)]
    for child, task in zip(plan.children, plan.focus, strict=True):
        about = f"{describe(child)} Parents from: {task or 'population'}."
        lineage = lineage_tags(child) | {"cycleqd.focus": task or "population"}
        runs.append(
            NewRun(model_key(child.id), child.id, about, model_tags(store, child.id, "child") | lineage, number)
        )
    ids = tracker.create_runs(store, layout.mlflow(plan.generation), seeded.experiment, runs, seeded)
    for child in plan.children:
        tracker.log(ids.runs[model_key(child.id)], time=0, params=lineage_params(child))


def log_making(settings: Settings, store: Store, model: str, stages: Sequence[str]) -> None:
    """Log digest, seconds and place of a model's making on its run.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        model: Model id.
        stages: Those that made it: merge, mutate or make.
    """
    tracker, run_id = Tracker(settings), ids_of(store, model).runs[model_key(model)]
    for name in stages:
        folder = layout.stage(model, name)
        outputs, run = need_result(store, folder)["outputs"], store.get_json(layout.run(folder))
        metrics = {f"seconds/{name}/{part}": value for part, value in run["seconds"].items()}
        params: dict[str, object] = {}
        tags: dict[str, object] = {**where_tags(run)}
        if "checkpoint" in outputs:
            params, tags = {"bytes": outputs["checkpoint"]["size"]}, tags | digest_tag(outputs["checkpoint"])
        tracker.log(run_id, time=run["started"], metrics=metrics, params=params, tags=tags)


def log_evaluations(settings: Settings, store: Store, pairs: Iterable[tuple[str, str]], split: str) -> None:
    """Log scores, standard errors, outcomes and groups on the models' runs.

    The average over the groups counts each of them the same, however many samples it has (AgentBench's DB score).

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        pairs: (model id, task) of evaluations that have a record.
        split: "search" or "test".
    """
    tracker = Tracker(settings)
    for model, task in pairs:
        folder = layout.evaluation(model, task, split)
        outputs, run = need_result(store, folder)["outputs"], store.get_json(layout.run(folder))
        groups = outputs["groups"]
        metrics = {
            f"{split}_score/{task}": outputs["score"],
            f"{split}_stderr/{task}": outputs["standard_error"],
            **{f"{split}_outcomes/{task}/{name}": count for name, count in outputs["counts"].items()},
            **{f"{split}_groups/{task}/{name}": value for name, value in groups.items()},
            **({f"{split}_group_average/{task}": fmean(groups.values())} if groups else {}),
            **{f"seconds/evaluate_{split}/{task}/{part}": value for part, value in run["seconds"].items()},
        }
        tags = {"cycleqd.engine": outputs["engine"], **where_tags(run, f".{split}.{task}")}
        tracker.log(ids_of(store, model).runs[model_key(model)], time=run["started"], metrics=metrics, tags=tags)


def log_update(settings: Settings, store: Store, generation: int, models: Sequence[str], state: State) -> None:
    """Log the curves' next point, the snapshot and its heatmaps, and end the generation's runs.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        generation: The generation whose children were offered; -1: seeding.
        models: Ids of the models that were offered.
        state: The snapshot that was made.
    """
    from cycleqd.report import heatmaps

    measures = measure(state)
    tracker, seeded = Tracker(settings), need_ids(store, layout.SEED_MLFLOW)
    folder = layout.update(generation)
    outputs, run = need_result(store, folder)["outputs"], store.get_json(layout.run(folder))
    evolution, snapshot = seeded.runs[EVOLUTION], outputs["snapshot"]
    head = need_head(store)  # another process may have moved it on: these tags name the newest snapshot
    tracker.log(
        evolution,
        time=run["started"],
        step=snapshot,
        metrics=measures,
        tags={"cycleqd.snapshot": head.snapshot, "cycleqd.snapshot_digest": head.sha256},
    )
    tracker.text(evolution, layout.snapshot(snapshot), store.get(layout.snapshot(snapshot)).decode())
    tracker.picture(evolution, f"heatmaps/{snapshot:06d}.png", heatmaps.archives(state))
    for model, entered in outputs["entered"].items():
        run_id = ids_of(store, model).runs[model_key(model)]
        tracker.log(run_id, time=run["started"], tags={"cycleqd.entered": ", ".join(entered) or "no archive"})
    for model in models:
        tracker.end(ids_of(store, model).runs[model_key(model)], run["finished"])
    if generation >= 0:
        own = need_ids(store, layout.mlflow(generation)).runs[generation_key(generation)]
        seconds = {f"seconds/update/{part}": value for part, value in run["seconds"].items()}
        tracker.log(own, time=run["started"], step=snapshot, metrics={**measures, **seconds}, tags=where_tags(run))
        tracker.end(own, run["finished"])


def log_rescoring(settings: Settings, store: Store, pairs: Iterable[tuple[str, str]]) -> None:
    """Log new scores on the models' runs, and which snapshot is the current one.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        pairs: (model id, task) that were scored anew.
    """
    log_evaluations(settings, store, pairs, "search")
    head, evolution = need_head(store), need_ids(store, layout.SEED_MLFLOW).runs[EVOLUTION]
    run = store.get_json(layout.run(layout.maker(*head.position)))
    tags = {"cycleqd.snapshot": head.snapshot, "cycleqd.snapshot_digest": head.sha256}
    tracker, key = Tracker(settings), layout.snapshot(*head.position)
    tracker.log(evolution, time=run["started"], tags=tags)
    tracker.text(evolution, key, store.get(key).decode())


def log_extension(settings: Settings, store: Store, record: Record, what: str) -> None:
    """Tag the evolution's run with what was changed of its configuration after seeding.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        record: The extension's.
        what: The same in words.
    """
    tags = {f"cycleqd.extension.{record.sha256[:12]}": what}
    Tracker(settings).log(need_ids(store, layout.SEED_MLFLOW).runs[EVOLUTION], time=0, tags=tags)


def log_final(settings: Settings, store: Store, config: Config, made: Sequence[str]) -> None:
    """Create the runs of the combined models, log parents and coefficients, and end the evolution's run.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        config: The frozen configuration.
        made: Ids of the combined models that exist by now.
    """
    tracker, seeded = Tracker(settings), need_ids(store, layout.SEED_MLFLOW)
    about = {
        "naive": "Every expert with the same weight: what evolution is compared with.",
        "aggregated": "The softmax aggregate over the best elites, which is the final model, or is built beside it.",
        "final": "The final model: base + Σ β τ over the best elites, or the single model with the best average.",
    }
    about |= {m: f"Task arithmetic with λ = {value:g} for all experts." for m, value in config.lambdas.items()}
    runs = [NewRun(model_key(m), m, about[m], model_tags(store, m, m), EVOLUTION) for m in config.combined]
    ids = tracker.create_runs(store, layout.FINAL_MLFLOW, seeded.experiment, runs, seeded)
    for model in made:
        folder = layout.stage(model, "make")
        inputs, run = need_result(store, folder)["inputs"], store.get_json(layout.run(folder))
        tags = {
            "cycleqd.parents": ",".join(parent["id"] for parent in inputs["models"]),
            "cycleqd.parent_digests": ",".join(parent["digest"] for parent in inputs["models"]),
            "cycleqd.coefficients": ",".join(map(repr, inputs["coefficients"])),
        }
        tracker.log(ids.runs[model_key(model)], time=run["started"], tags=tags)
        log_making(settings, store, model, ["make"])
        tracker.end(ids.runs[model_key(model)], run["finished"])
    if "final" in made:
        _register_final(tracker, store, config, ids)
        tracker.end(seeded.runs[EVOLUTION], store.get_json(layout.run(layout.stage("final", "make")))["finished"])


def _register_final(tracker: Tracker, store: Store, config: Config, ids: Ids) -> None:
    """The final model as a version of the registered model of the evolution's name.

    In the span it is its PEFT folder, or the full checkpoint where no adapter is the same model.
    """
    body = need_result(store, layout.stage("final", "make"))
    made, inputs = body["outputs"], body["inputs"]
    files, folder = made["checkpoint"], layout.checkpoint("final")
    tags = {
        "cycleqd.url": store.url(""),
        "cycleqd.model": "final",
        "cycleqd.digest.base": inputs["base"]["digest"],
        "cycleqd.parents": ",".join(parent["id"] for parent in inputs["models"]),
        "cycleqd.coefficients": ",".join(map(repr, inputs["coefficients"])),
    }
    if config.in_span:
        tags |= {"cycleqd.digest.core": files["digest"], "cycleqd.scored_as": "final"}
        form = "full" if "full" in made else "adapter"
        files, folder = made[form], (layout.full if form == "full" else layout.adapter)("final")
    tracker.register(config.name, ids.runs[model_key("final")], store.url(folder), files["digest"], tags)
