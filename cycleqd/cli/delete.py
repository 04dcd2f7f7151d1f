"""cycleqd delete: an evolution out of S3, MLflow and Kubeflow Pipelines, asked for once."""

from __future__ import annotations

import sys
from typing import Any

import typer

from cycleqd.cli.output import answer, errors, size
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Runs
from cycleqd.run.local.runner import alone
from cycleqd.storage import layout
from cycleqd.storage.bucket import remove
from cycleqd.storage.objects import Store
from cycleqd.tracking.deleting import count_runs, forget
from cycleqd.tracking.tracker import Tracker

_QUESTION = "Delete all of this?"


def run(source: ConfigSource, name: str, sure: bool, as_json: bool) -> None:
    """Say what would be freed, ask, and delete.

    Args:
        source: The configuration, whose bucket, MLflow server and cluster are meant.
        name: The evolution's name.
        sure: Do not ask.
        as_json: Print JSON.

    Raises:
        InvalidInputError: There is no such evolution, or nobody can be asked.
        ConflictError: It is running.
    """
    config = source.load()
    config = config.model_copy(update={"name": name})
    with session(source, tracking=True) as opened:
        store = Store(opened.store.client, opened.store.bucket, name)
        if not store.exists(layout.CONFIG):
            raise InvalidInputError(f"there is no evolution '{name}' in s3://{store.bucket}; `cycleqd list` lists them")
        with alone(config):
            runs = Runs(config, Kubeflow(config.place)) if config.place.runner == "kubeflow" else None
            facts = _facts(store, Tracker(opened.settings), runs)
            said = _said(store, facts)
            if not sure:
                _ask(said)
            if runs:
                _leave_cluster(runs)
            forget(Tracker(opened.settings), store)
            remove(store)
    answer(as_json, facts, f"deleted: {said}")


def _facts(store: Store, tracker: Tracker, runs: Runs | None) -> dict[str, Any]:
    """What deleting frees. Raises ConflictError where a run is in flight."""
    objects, known = store.list(""), runs.all() if runs else []
    if live := [run.name for run, _ in known if run.live]:
        raise ConflictError(f"{', '.join(live)} of '{store.evolution}' is in flight: `cycleqd cancel` ends it")
    return {
        "evolution": store.evolution,
        "objects": len(objects),
        "bytes": sum(objects.values()),
        "mlflow_runs": count_runs(tracker, store),
        "kubeflow_runs": len(known),
    }


def _said(store: Store, facts: dict[str, Any]) -> str:
    archived = f", {facts['kubeflow_runs']} runs in Kubeflow Pipelines (archived)" if facts["kubeflow_runs"] else ""
    return (
        f"{facts['objects']} objects of {store.url('')}, {size(facts['bytes'])}; {facts['mlflow_runs']} runs in MLflow,"
        f" and its registered model (restorable there until `mlflow gc`){archived}"
    )


def _ask(said: str) -> None:
    """Exit unless the answer is yes."""
    if not sys.stdin.isatty():
        raise InvalidInputError(f"{said}: to delete it where nobody can be asked, add --yes")
    errors.print(said, markup=False)
    typer.confirm(_QUESTION, abort=True, err=True)


def _leave_cluster(runs: Runs) -> None:
    """Remove the schedule, and archive the runs: a later evolution of the name then starts from nothing."""
    experiment = runs.experiment()
    for one in runs.kubeflow.schedules(experiment, runs.full_name("schedule")) if experiment else []:
        runs.kubeflow.delete_schedule(str(one.recurring_run_id))
    for run, _ in runs.all():
        runs.kubeflow.archive(run.id)
