"""All that MLflow holds of an evolution, without what differs between two runs of it: ids, times, machines, buckets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient

from cycleqd.tracking.tracker import KEY

_OWN = ("cycleqd.checkpoint", "cycleqd.url", "mlflow.parentRunId", "mlflow.note.content")


@dataclass(frozen=True)
class Ledger:
    """runs: key → name, parent's key, status, params, tags, metrics' points (but for seconds), artifacts, datasets, and
    of its checkpoints' logged models name, status, digest and metrics.
    """

    experiment: str
    runs: dict[str, dict[str, Any]]

    def rename(self, name: str) -> None:
        MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).rename_experiment(self.experiment, name)


def ledger(evolution: str) -> Ledger:
    """Read by MLflow's API alone."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(evolution)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = {run.info.run_id: run.data.tags[KEY] for run in runs}
    assert all(run.info.end_time is None or run.info.start_time <= run.info.end_time for run in runs)
    assert len(set(keys.values())) == len(runs), "a run was created twice"
    return Ledger(experiment.experiment_id, {keys[run.info.run_id]: _entry(client, run, keys) for run in runs})


def _entry(client: MlflowClient, run: Any, keys: dict[str, str]) -> dict[str, Any]:
    parent = run.data.tags.get("mlflow.parentRunId")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    seconds = {name for name in histories if name.startswith("seconds/")}
    assert all(len(histories[name]) == 1 for name in seconds), "a time was logged twice"
    return {
        "name": run.info.run_name,
        "parent": keys[parent] if parent else None,
        "status": run.info.status,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name not in _OWN},
        "metrics": {
            name: [(point.step, point.value) for point in points]
            for name, points in histories.items()
            if name not in seconds
        },
        # A report's bytes hold times.
        "artifacts": sorted(
            (path, 0 if path.startswith("report/") else size) for path, size in _files(client, run.info.run_id, None)
        ),
        "datasets": sorted(
            (used.dataset.name, used.dataset.digest, used.dataset.profile, used.tags[0].value)
            for used in run.inputs.dataset_inputs
        ),
        "models": sorted(_model(client, output.model_id) for output in run.outputs.model_outputs),
    }


def _model(client: MlflowClient, model: str) -> tuple[str, str, str, tuple[tuple[str, float], ...]]:
    found = client.get_logged_model(model)
    points = sorted((one.key, one.value) for one in found.metrics or () if not one.key.startswith("seconds/"))
    return found.name, str(found.status), found.tags["cycleqd.digest"], tuple(points)


def _files(client: MlflowClient, run: str, folder: str | None) -> list[tuple[str, int]]:
    found = []
    for item in client.list_artifacts(run, folder):
        found += _files(client, run, item.path) if item.is_dir else [(item.path, item.file_size)]
    return found
