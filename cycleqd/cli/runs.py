"""cycleqd runs, logs, retry and cancel: living with what was submitted."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cycleqd.cli.cluster import reach_runs
from cycleqd.cli.output import duration, plain, print_json, say, table
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.decisions import CANCELING, ENDED, Run

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_RECENT = 100
_GENERATION = re.compile(r"^generations?-(\d+)(?:-(\d+))?$")


def show(source: ConfigSource, limit: int, as_json: bool) -> None:
    """A table of the evolution's runs, the newest first."""
    runs = reach_runs(source)
    facts = [gather(run, one, runs.kubeflow.url(run.id)) for run, one in runs.all(limit)]
    if as_json:
        print_json(facts)
        return
    if not facts:
        say(f"{runs.config.name} has no runs at {runs.kubeflow.where}")
        return
    rows = [
        [
            fact["name"],
            fact["state"],
            fact["generation"],
            (fact["started"] or "")[:19].replace("T", " "),
            "" if fact["seconds"] is None else duration(fact["seconds"]),
            fact["run"],
        ]
        for fact in facts
    ]
    columns = ["name", "state", "generation", "started (UTC)", "took", "id"]
    table(f"{runs.config.name} at {runs.kubeflow.where}", columns, rows, ["generation", "took"])


def gather(run: Run, one: V2beta1Run, url: str) -> dict[str, Any]:
    """A run as JSON values."""
    found = _GENERATION.match(run.name)
    finished = one.finished_at if run.state in ENDED and one.finished_at and one.finished_at.year > 1970 else None
    until = finished or (None if run.state in ENDED else datetime.now(UTC))
    return {
        "run": run.id,
        "name": run.name,
        "state": run.state,
        "generation": "" if not found else "–".join(str(int(number)) for number in found.groups() if number),
        "scheduled": run.scheduled,
        "started": run.created_at.isoformat() if run.created_at else None,
        "finished": finished.isoformat() if finished else None,
        "seconds": max(0.0, (until - run.created_at).total_seconds()) if until and run.created_at else None,
        "error": run.reason,
        "url": url,
    }


def logs(source: ConfigSource, name: str, task: str, drivers: bool, lines: int, as_json: bool) -> None:
    """What the pods of a run wrote, oldest pod first. Raises InvalidInputError when none is left."""
    from cycleqd.run.kubeflow.pods import Kubernetes

    runs = reach_runs(source)
    run, namespace = runs.resolve(name), runs.config.place.namespace
    kubernetes = Kubernetes()
    pods = kubernetes.pods(run.id, namespace, drivers)
    chosen = [pod for pod in pods if not task or task in (pod.task, pod.name, pod.child) or pod.task.startswith(task)]
    if not chosen:
        there = ", ".join(sorted({pod.task for pod in pods}))
        raise InvalidInputError(
            f"run {run.name} has no pods of '{task}' in namespace '{namespace}'; it has: {there}"
            if pods and task
            else f"run {run.name} ({run.id}) has no pods in namespace '{namespace}': they were not made yet, or are"
            f" cleaned up; look at {runs.kubeflow.url(run.id)}"
        )
    facts = [{**pod.__dict__, "log": kubernetes.log(pod, namespace, lines)} for pod in chosen]
    if as_json:
        print_json(facts)
        return
    for fact in facts:
        title = " ".join(filter(None, (fact["task"], fact["child"])))
        sys.stdout.write(plain(f"=== {title} · {fact['phase']} · {fact['name']}\n{fact['log'].rstrip()}\n\n"))


def retry(source: ConfigSource, name: str, as_json: bool) -> None:
    """Run what failed, and what follows it, again in the same run."""
    runs = reach_runs(source)
    run = runs.resolve(name)
    runs.retry(run)
    _tell(run, "runs again", runs.kubeflow.url(run.id), as_json)


def cancel(source: ConfigSource, name: str | None, as_json: bool) -> None:
    """End a run, or all that are in flight. What they finished stays: the step's next run takes it up."""
    runs = reach_runs(source)
    chosen = [runs.resolve(name)] if name else [run for run, _ in runs.all(_RECENT) if run.live]
    live = [run for run in chosen if run.live]
    for run in live:
        runs.cancel(run)
    if as_json:
        print_json([{"run": run.id, "name": run.name} for run in live])
        return
    for run in live:
        _tell(run, "is being cancelled", runs.kubeflow.url(run.id), False)
    for run in chosen:
        if not run.live:
            say(
                f"run {run.name} ({run.id}) is {run.state} already"
                if run.state != CANCELING
                else f"{run.name} is ending"
            )
    if not chosen:
        say(f"no run of {runs.config.name} is in flight")


def _tell(run: Run, what: str, url: str, as_json: bool) -> None:
    if as_json:
        print_json({"run": run.id, "name": run.name, "url": url})
        return
    say(f"run {run.name} ({run.id}) {what}: {url}")
