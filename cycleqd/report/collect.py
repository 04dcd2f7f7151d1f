"""Report data from an evolution's records in S3. Reads only records, never a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

from cycleqd.errors import IntegrityError
from cycleqd.progress import Bar, no_bar
from cycleqd.report.data import Compared, Cost, Origin, ReportData, Split, Tally
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, load_config, model_ref
from cycleqd.storage.family import family, member
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result, read_result
from cycleqd.storage.scores import refuse_other_conditions
from cycleqd.storage.tuned import find_tuned
from cycleqd.weights.manifest import CORE

_READERS = 16


def collect(store: Store, bar: Bar = no_bar) -> ReportData:
    """Everything that the report shows, at HEAD.

    Args:
        store: Objects of the evolution.
        bar: Shows how far reading is.

    Raises:
        ConflictError: seeding has not ended, or models were scored under different conditions.
    """
    plan = store.find_json(layout.FINAL_PLAN)
    recipe = final_recipe(store)
    runs = read_runs(store, bar)
    with bar("reading scores and the family tree", None):
        found = compare(store)
        best = states.best_living(found.state).model.id
        members = family(store, [best, *(name for name, _ in recipe)])
    return ReportData(
        config=found.config,
        state=found.state,
        results=found.results,
        tuned=found.tuned,
        recipe=recipe,
        final_snapshot=plan["snapshot"] if plan and recipe else None,
        best=best,
        children={name: one.child for name, one in members.items() if one.child},
        cost=cost(store, runs, bar),
        origin=origin(runs.values()),
        url=store.url(""),
    )


def compare(store: Store) -> Compared:
    """What the models score that the final one is compared with.

    Args:
        store: Objects of the evolution.

    Raises:
        ConflictError: seeding has not ended, or models were scored under different conditions.
    """
    config, state, tuned = load_config(store), current(store)[1], find_tuned(store)
    experts = [expert.model.id for expert in state.experts]
    built = [model for model in config.combined if model == tuned or model not in config.lambdas]
    models = ["base", *experts, *config.extracted, states.best_living(state).model.id, *built]
    return Compared(config=config, state=state, results=results(store, config, models), tuned=tuned)


def final_recipe(store: Store) -> tuple[tuple[str, float], ...]:
    """Models and coefficients of the final model as it was built; empty before finalising.

    Args:
        store: Objects of the evolution.
    """
    return member(store, "final").parents if read_result(store, layout.stage("final", "make")) else ()


def results(store: Store, config: Config, models: Iterable[str]) -> Mapping[Split, Mapping[str, Mapping[str, Tally]]]:
    """The verdicts of the models as they are now; a score of an earlier final model does not count.

    Args:
        store: Objects of the evolution.
        config: Its tasks.
        models: Model ids; those that have not been made are left out.

    Raises:
        ConflictError: models were scored under different conditions.
    """
    found: dict[Split, dict[str, dict[str, Tally]]] = {"search": {}, "test": {}}
    for model in dict.fromkeys(models):
        try:
            digest = model_ref(store, model).digest
        except IntegrityError:  # naive and final before finalising
            continue
        for split, task in product(found, config.tasks):
            body = read_result(store, layout.evaluation(model, task, split))
            base = read_result(store, layout.evaluation("base", task, split))
            if body is None or base is None or body["inputs"]["model"] != digest:
                continue
            refuse_other_conditions(model, task, body, base)
            found[split].setdefault(model, {})[task] = Tally(body["outputs"]["verdicts"])
    return found


def read_runs(store: Store, bar: Bar = no_bar) -> dict[str, JSON]:
    """What stages recorded of their work: key of run.json → its content.

    Args:
        store: Objects of the evolution.
        bar: Shows how far reading is.
    """
    objects = store.list("")
    stage = partial(_stage, in_span=layout.result(layout.stage(layout.BASIS, "make")) in objects)
    keys = [key for key in objects if key.endswith("/run.json") and stage(key) != "copies"]
    with bar("reading records", len(keys)) as advance, ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(keys, pool.map(_counted(store.get_json, advance), keys), strict=True))


def _counted(read: Callable[[str], JSON], advance: Callable[[int], None]) -> Callable[[str], JSON]:
    def one(key: str) -> JSON:
        found = read(key)
        advance(1)
        return found

    return one


def cost(store: Store, runs: Mapping[str, JSON], bar: Bar = no_bar) -> Cost:
    """Time and bytes by the stages' records. A stage that was repeated counts once, as its record does.

    Args:
        store: Objects of the evolution.
        runs: As `read_runs` returns them.
        bar: Shows how far reading is.
    """
    objects = store.list("")
    stage = partial(_stage, in_span=layout.result(layout.stage(layout.BASIS, "make")) in objects)
    ends = tuple(layout.result(f"/{name}") for name in ("merge", "mutate", "make"))
    made = [key.removesuffix("/result.json") for key in objects if key.endswith(ends)]
    with bar("reading how models were made", len(made)) as advance, ThreadPoolExecutor(_READERS) as pool:
        bodies = list(pool.map(_counted(partial(need_result, store), advance), made))
    seconds: dict[str, float] = {}
    for key, run in runs.items():
        seconds[stage(key)] = seconds.get(stage(key), 0.0) + (run["finished"] - run["started"]) / 1000
    judged = [run for key, run in runs.items() if stage(key) == "evaluate"]
    sizes = [int(_made(body)["size"]) for body in bodies]
    return Cost(
        evaluations=len(judged),
        samples=sum(len(run["sample_seconds"]) for run in judged),
        seconds=dict(sorted(seconds.items())),
        written=sum(sizes),
        read=_read(bodies),
        stored=sum(objects.values()),
    )


def origin(runs: Iterable[JSON]) -> Origin:
    """When, by what and where.

    Args:
        runs: What stages recorded.
    """
    known = list(runs)
    libraries = {f"{name} {version}" for run in known for name, version in run.get("libraries", {}).items()}
    return Origin(
        began=min(run["started"] for run in known),
        ended=max(run["finished"] for run in known),
        versions=_distinct(run.get("code_version") for run in known),
        libraries=tuple(sorted(libraries)),
        machines=_distinct(_machine(run) for run in known),
        images=_distinct(run.get("image") for run in known),
    )


def _distinct(found: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({one for one in found if one}))


def _machine(run: JSON) -> str:
    """A processor, its instruction sets, and the device where it is not the processor."""
    sets = ", ".join(run.get("instruction_sets", ()))
    device = "" if run.get("device", "cpu") == "cpu" else f" with {run['device']}"
    return f"{run.get('cpu', '')}{f' ({sets})' if sets else ''}{device}"


def _stage(key: str, in_span: bool) -> str:
    """The stage that wrote a run.json, from its key; "copies" are parts of seeding's own record."""
    match key.split("/")[:-1]:
        case ["seed"]:
            return "seed"
        case ["generations", _]:
            return "select parents"
        case [*_, "update"]:
            return "update archives"
        case [*_, "evaluations", _, _]:
            return "evaluate"
        case ["models", model, "make"] if layout.is_combined(model):
            return "aggregate"
        case ["models", model, "make"]:
            return "basis" if in_span and model != "base" and not model.startswith("source-") else "copies"
        case [*_, name]:
            return name.replace("_", " ")
    return "other"


def _made(body: JSON) -> JSON:
    """What a record says of the checkpoint that was made."""
    return body["outputs"].get("checkpoint") or body["outputs"].get("merged")


def _read(bodies: Sequence[JSON]) -> int:
    """Bytes of the models that others were made of; the base is read for each dense one, copies read themselves."""
    sizes = {made["digest"]: int(made["size"]) for made in map(_made, bodies)}
    total = 0
    for body in bodies:
        inputs, made = body["inputs"], _made(body)
        match body["stage"]:
            case "merge":
                read = {inputs["child"]["base"]["digest"]} | {ref["digest"] for ref in inputs["child"]["parents"]}
            case "mutate":
                read = {inputs["child"]["base"]["digest"], inputs["merged"]}
            case "aggregate":
                read = {inputs["base"]["digest"]} | {ref["digest"] for ref in inputs["models"]}
            case _:
                read = {made["digest"]}
        if set(made["files"]) == {CORE}:
            read -= {inputs.get("child", inputs).get("base", {}).get("digest")}
        total += sum(sizes.get(digest, 0) for digest in read)
    return total
