"""The evolution "golden", one generation of which is due, and what drives it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cycleqd.errors import CycleQDError
from cycleqd.run import driver as drivers
from cycleqd.run.decisions import Action, Position
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Runs, Steps
from cycleqd.run.steps import Step
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from pipelines.definitions import write
from tests.pipelines.configs import two_tasks
from tests.run.kfp_backend import Backend

GENERATION = Step("generation", 3, 1)
NAME = "golden-generation-000003"


def connect(**place: Any) -> Kubeflow:
    return Kubeflow(two_tasks(runner="kubeflow", **place).place)


def runs(**place: Any) -> Runs:
    config = two_tasks(runner="kubeflow", **place)
    return Runs(config, Kubeflow(config.place))


class Driver:
    """A driver of one generation, which is done when a run of it has succeeded. `place`: changes of the settings."""

    def __init__(self, backend: Backend, store: Store, retries: int = 2, fresh: bool = False, **place: Any) -> None:
        self.backend = backend
        self.warnings: list[str] = []
        self.actions: list[Action] = []
        config = two_tasks(runner="kubeflow", **place)
        self.steps = Steps(config, Kubeflow(config.place), store, lambda: config, warned=self.warnings.append)
        announce = self.announce
        self.driver = drivers.Driver(self.steps, self.position, retries, announce, fresh=fresh)

    def announce(self, action: Action, where: Position) -> None:
        self.actions.append(action)

    def position(self) -> Position:
        done = any(run["state"] == "SUCCEEDED" for run in self.backend.runs.values())
        return Position(None if done else GENERATION, None)

    def drive(self) -> list[str]:
        """Drive to the end; what was posted to runs."""
        before = len(self.backend.posts())
        self.driver.drive()
        return [call.rpartition("/")[2] for call in self.backend.posts()[before:] if "/runs" in call]


def by_hand(driver: Driver) -> None:
    """What `cycleqd retry` and Kubeflow's own button do, as often as wanted."""
    super(Steps, driver.steps).retry(driver.steps.resolve(NAME))


def failing(errors: list[CycleQDError | None], store: Store) -> Callable[[dict[str, Any]], None]:
    """The work of a task that meets these one after another."""

    def work(run: dict[str, Any]) -> None:
        os.environ["KFP_RUN_ID"] = run["run_id"]
        try:
            with recorded(store, "merge", "g000003-c00"):
                if (error := errors.pop(0)) is not None:
                    raise error
        finally:
            del os.environ["KFP_RUN_ID"]

    return work


def earlier_release(backend: Backend, folder: Path, *states: str) -> dict[str, Any]:
    """A run whose definition limits its loop to two iterations at a time."""
    write(two_tasks(parallelism=2, fused=True), "generation", 1, folder / "old.yaml")
    spec = next(yaml.safe_load_all((folder / "old.yaml").read_text()))
    names = {"pipeline_version_id": "version-old", "pipeline_id": "old", "name": "old", "display_name": "old"}
    backend.versions["version-old"] = {**names, "pipeline_spec": spec}
    reference = {"pipeline_id": "old", "pipeline_version_id": "version-old"}
    return backend.add_run(NAME, *states, pipeline_version_reference=reference)


def pod(run: dict[str, Any], phase: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"pod-{phase}", "labels": {"pipeline/runid": run["run_id"]}},
        "spec": {"containers": [{"name": "main", "args": []}]},
        "status": {"phase": phase},
    }
