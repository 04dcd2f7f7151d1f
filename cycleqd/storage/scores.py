"""Scores from the records of evaluations, as archives and reports need them."""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, Scored
from cycleqd.storage import layout
from cycleqd.storage.evolution import model_ref
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_record, need_result

_VERSIONS = {"method_version", "task_version"}
_RESCORE = "`cycleqd rescore` makes the scores anew"


def scored_models(
    store: Store, config: Config, models: Sequence[str], verdicts: bool = False
) -> tuple[list[Scored], JSON]:
    """The models with their scores on the search tasks, and the sha256 of the records that these come from.

    Args:
        store: Objects of the evolution.
        config: Its search tasks.
        models: Model ids, in the order of the result.
        verdicts: Whether to read single samples' verdicts, too.

    Raises:
        IntegrityError: a record is missing or judged another checkpoint.
        ConflictError: models were scored under different conditions (engine, data, samples, sampling), so that their
            scores cannot be compared.
    """
    reference = {task: need_result(store, layout.evaluation("base", task, "search")) for task in config.search_tasks}
    found: list[Scored] = []
    records: dict[str, dict[str, str]] = {}
    for name in models:
        ref = model_ref(store, name)
        read = {task: need_record(store, layout.evaluation(name, task, "search")) for task in config.search_tasks}
        bodies = {task: record.body for task, record in read.items()}
        for task, body in bodies.items():
            if body["inputs"]["model"] != ref.digest:
                raise IntegrityError(
                    f"{store.url(layout.evaluation(name, task, 'search'))} scores a model of digest"
                    f" {body['inputs']['model']}, but '{name}' has {ref.digest}; evaluate it again"
                )
            refuse_other_conditions(name, task, body, reference[task])
        scores = {task: body["outputs"]["score"] for task, body in bodies.items()}
        bits = {task: tuple(bit == "1" for bit in body["outputs"]["verdicts"]) for task, body in bodies.items()}
        found.append(Scored(ref, scores, bits if verdicts else None))
        records[name] = {task: record.sha256 for task, record in read.items()}
    return found, records


def conditions(body: JSON) -> JSON:
    """What a score depends on besides the model: engine, task, data, samples, sampling, versions.

    Records of an earlier format have, for what was not a condition then, the value that was in force (see `formats`).

    Args:
        body: Content of an evaluation's record.
    """
    inputs = {key: value for key, value in body["inputs"].items() if key != "model"}
    fixed = {key: body["outputs"][key] for key in ("engine", "samples")}
    return {**inputs, **fixed, "method_version": body["method_version"]}


def refuse_other_conditions(model: str, task: str, body: JSON, reference: JSON) -> None:
    """Refuse to compare a model with the base unless both were scored under the same conditions.

    Args:
        model: Model id.
        task: Name of the task in the configuration.
        body: Content of the model's record on the task.
        reference: Content of the base's record on the task.

    Raises:
        ConflictError: they differ in a condition.
    """
    mine, theirs = conditions(body), conditions(reference)
    differing = [key for key in sorted(mine | theirs) if mine.get(key) != theirs.get(key)]
    if differing:
        shown = ", ".join(f"{key} {mine.get(key)} against {theirs.get(key)}" for key in differing)
        raise ConflictError(
            f"'{model}' and the base were scored differently on '{task}' ({shown}), so their scores cannot be compared;"
            f" {_RESCORE if set(differing) <= _VERSIONS else 'evaluate on one engine with one configuration'}"
        )
