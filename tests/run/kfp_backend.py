"""What a server of Kubeflow Pipelines 2.17 holds and does, as far as it was seen and is used."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cycleqd.errors import CycleQDError

SUCCEEDING = ("PENDING", "RUNNING", "SUCCEEDED")
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Backend:
    """What the server holds. `scripts`: the states of the runs to come; the last one stays.

    `ends` does a run's work when it succeeds. What that raises makes it FAILED, and nothing is repeated, whatever the
    definition's retries are: the workflow controller repeats errors (OnError), and a container that exits is none.
    `failed_iterations`: how many iterations of a loop have failed in a run that is FAILED. `taken`: runs whose workflow
    is gone; `terminated`: runs that somebody ended.
    """

    multi_user: bool = False
    tag_name: str = "2.17.0"
    token: str = ""
    page: int = 100
    scripts: list[tuple[str, ...]] = field(default_factory=list)
    retried: tuple[str, ...] = ("FAILED", "FAILED", "RUNNING", "SUCCEEDED")
    ends: Callable[[dict[str, Any]], None] = lambda run: None
    failed_iterations: int = 1
    hung: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    terminated: set[str] = field(default_factory=set)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(start of "METHOD /path", fault): the first such request meets it; a status, "reset", "slow" or "after reset"."""
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    config_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ("namespaces",)
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    workflows: list[dict[str, Any]] = field(default_factory=list)
    pod_logs: dict[str, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    _count: int = 0

    def posts(self) -> list[str]:
        """The calls that changed something."""
        return [call for call in self.calls if not call.startswith("GET")]

    def tick(self) -> str:
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def identifier(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count:04d}"

    def add_run(self, name: str, *states: str, experiment: str = "", **more: Any) -> dict[str, Any]:
        """A run that is there already."""
        run = self.identifier("run")
        experiment = experiment or next(iter(self.experiments), "") or self.add_experiment("golden")
        self.states[run] = list(states)
        self.runs[run] = {
            "run_id": run,
            "experiment_id": experiment,
            "display_name": name,
            "storage_state": "AVAILABLE",
            "created_at": self.tick(),
            "state": states[0],
            "state_history": [],
            **more,
        }
        self.report(self.runs[run], states[0])
        return self.runs[run]

    def report(self, run: dict[str, Any], state: str) -> None:
        """A run's state, as the persistence agent reports it: changes are kept in the history."""
        run["state"] = state
        if [one["state"] for one in run["state_history"]][-1:] != [state]:
            run["state_history"].append({"update_time": self._clock.strftime("%Y-%m-%dT%H:%M:%SZ"), "state": state})
        if state not in ENDED:
            run.pop("finished_at", None)
        elif "finished_at" not in run:
            run["finished_at"] = self.tick()

    def add_experiment(self, name: str, namespace: str = "") -> str:
        identifier = self.identifier("experiment")
        self.experiments[identifier] = {
            "experiment_id": identifier,
            "display_name": name,
            "namespace": namespace,
            "storage_state": "AVAILABLE",
        }
        return identifier

    def poll(self, run: dict[str, Any]) -> dict[str, Any]:
        """The run as it is now; the next poll sees its next state."""
        states = self.states[run["run_id"]]
        before, state = run["state"], states.pop(0) if len(states) > 1 else states[0]
        if state == "SUCCEEDED" and before != "SUCCEEDED":
            try:
                self.ends(run)
            except CycleQDError:
                state = "FAILED"
                self.states[run["run_id"]] = [state]
        self.report(run, state)
        if run["state"] == "FAILED":
            run["error"] = {"code": 2, "message": "task evaluate-child failed"}
        # drivers and executors by name, and a failed attempt beside its success
        names = [("root-driver", "SUCCEEDED", []), ("executor", "FAILED", []), ("evaluate-child", "RUNNING", [])]
        if run["run_id"] in self.hung:  # DAGs read RUNNING, and nothing in them works
            names = [("root-driver", "SUCCEEDED", []), ("for-loop-1", "RUNNING", ["root-driver"])]
        details = [
            {
                "run_id": run["run_id"],
                "task_id": name,
                "display_name": name,
                "state": state,
                "child_tasks": [{"pod_name": child} for child in children],
            }
            for name, state, children in names
        ]
        return {**run, "run_details": {"task_details": details}}

    def retry(self, run: dict[str, Any]) -> None:
        """Pods of what failed are deleted, and DAGs that failed are set to Running, iterations of loops among them.

        Argo counts these against the loop's `parallelism`: where that many had failed, none ever starts.
        """
        limit = self.loop_limit(run)
        self.taken.discard(run["run_id"])  # made again from the database
        self.terminated.discard(run["run_id"])
        self.pods = [pod for pod in self.pods if pod["metadata"]["labels"].get("pipeline/runid") != run["run_id"]]
        if limit is not None and self.failed_iterations >= limit:
            self.hung.add(run["run_id"])
            self.states[run["run_id"]] = ["RUNNING"]
        else:
            self.states[run["run_id"]] = list(self.retried)

    def take(self, run: dict[str, Any]) -> None:
        """Workflow and pods of a run are removed, as an hour after its end; one in flight never moves again."""
        self.taken.add(run["run_id"])
        self.pods = [pod for pod in self.pods if pod["metadata"]["labels"].get("pipeline/runid") != run["run_id"]]
        self.states[run["run_id"]] = [run["state"]]

    def collect(self, schedule: str) -> None:
        """Kubernetes collects what a deleted recurring run owned."""
        for run in self.runs.values():
            if run.get("recurring_run_id") == schedule:
                self.take(run)

    def loop_limit(self, run: dict[str, Any]) -> int | None:
        """The `parallelism` of the loop in a run's definition."""
        version = self.versions.get(run.get("pipeline_version_reference", {}).get("pipeline_version_id", ""), {})
        found = re.search(r'"parallelismLimit": (\d+)', json.dumps(version))
        return int(found[1]) if found else None

    def terminate(self, run: dict[str, Any]) -> None:
        """The call itself leaves no trace in the history; what was terminated ends as FAILED."""
        run["state"] = "CANCELING"
        self.terminated.add(run["run_id"])
        lost = run["run_id"] in self.hung | self.taken
        self.states[run["run_id"]] = ["CANCELING"] if lost else ["CANCELING", "FAILED"]
