"""What MLflow holds of an evolution, and taking it away."""

from __future__ import annotations

from cycleqd.storage.objects import Store
from cycleqd.tracking.tracker import URL, Tracker


def count_runs(tracker: Tracker, store: Store) -> int:
    """The runs of an evolution; 0 where it has no experiment here.

    Args:
        tracker: The server.
        store: Objects of the evolution.
    """
    found = _experiment(tracker, store)
    return 0 if found is None else len(tracker.search(found, ""))


def forget(tracker: Tracker, store: Store) -> None:
    """Delete an evolution's experiment with its runs, and its registered model; its name is free again.

    All can be restored until `mlflow gc`.

    Args:
        tracker: The server.
        store: Objects of the evolution.
    """
    from mlflow.exceptions import MlflowException

    with tracker.reported():
        found = _experiment(tracker, store)
        if found is None:
            return
        try:
            tracker.client.delete_registered_model(store.evolution)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        tracker.client.rename_experiment(found, f"{store.evolution} (deleted, {found})")
        tracker.client.delete_experiment(found)


def _experiment(tracker: Tracker, store: Store) -> str | None:
    with tracker.reported():
        found = tracker.client.get_experiment_by_name(store.evolution)
    if found is None or found.lifecycle_stage != "active" or found.tags.get(URL) != store.url("").rstrip("/"):
        return None
    return str(found.experiment_id)
