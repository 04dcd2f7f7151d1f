"""cycleqd runs, logs, retry and cancel: looking after what was started."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cycleqd.cli.cluster import reach_runs
from cycleqd.cli.output import answer, duration, plain, print_json, say, table
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.decisions import CANCELING, ENDED, Run
from cycleqd.run.driver import FAILED_TASK, TaskLog
from cycleqd.run.kubeflow.waiting import Waits
from cycleqd.run.local import runner as local

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_RECENT = 100
_GENERATION = re.compile(r"^generations?-(\d+)(?:-(\d+))?$")


def show(source: ConfigSource, limit: int, as_json: bool) -> None:
    """A table of the evolution's runs, the newest first.

    Args:
        source: Files and flags that make the configuration.
        limit: So many runs; 0 is all.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    waits = Waits(runs.config.place)
    facts = [
        {
            **_gather(run, one, runs.kubeflow.url(run.id)),
            "waits": [*waits.look(run.id).values()] if run.live else [],
        }
        for run, one in runs.all(limit)
    ]
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
    for fact in facts:
        for sentence in fact["waits"]:
            say(f"{fact['name']}: {sentence}")


def _gather(run: Run, one: V2beta1Run, url: str) -> dict[str, Any]:
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
    """What the tasks of a run wrote, the oldest first: those that failed, else all.

    A step that ran on this machine is looked for here, unless the configuration is of a cluster; any other there.

    Args:
        source: The configuration.
        name: A step, or the id of a run in a cluster.
        task: Only tasks of this name or beginning, this child or this pod; "" for any.
        drivers: The pods of KFP's own drivers, too.
        lines: How many lines of each are shown, the last ones.
        as_json: Print JSON.

    Raises:
        InvalidInputError: There is no such run, or no log of it is left.
    """
    step, found = _find_logs(source, name, drivers)
    named = [log for log in found if not task or task in (log.task, log.name, log.child) or log.task.startswith(task)]
    if not named:
        raise InvalidInputError(f"run {step} has no logs of '{task}'; it has: {_tasks(found)}")
    failed = [log for log in named if log.phase == FAILED_TASK]
    shown = failed if failed and not (task or drivers) else named
    keys = ("name", "task", "child", "phase", "started")
    facts = [{**{key: getattr(log, key) for key in keys}, "log": log.read(lines)} for log in shown]
    if as_json:
        print_json(facts)
        return
    for fact in facts:
        title = " ".join(filter(None, (fact["task"], fact["child"])))
        sys.stdout.write(plain(f"=== {title} · {fact['phase']} · {fact['name']}\n{fact['log'].rstrip()}\n\n"))
    if len(shown) < len(named):
        say(f"{len(named) - len(shown)} tasks that did not fail are left out; name one with --task: {_tasks(named)}")


def _find_logs(source: ConfigSource, name: str, drivers: bool) -> tuple[str, list[TaskLog]]:
    """The step of a run and the logs of its tasks, at least one."""
    config = source.load()
    found = local.logs(config, name) if config.place.runner != "kubeflow" else []
    if found:
        return name, found
    if config.place.services == "embedded":
        raise InvalidInputError(f"no logs of '{name}' are in {local.folder(config)}; there are: {local.logged(config)}")
    runs = reach_runs(source)
    run = runs.resolve(name)
    found = runs.logs(run, drivers)
    if not found:
        raise InvalidInputError(
            f"run {run.name} ({run.id}) has no pods in namespace '{config.place.namespace}': they were not made yet, or"
            f" are cleaned up; look at {runs.kubeflow.url(run.id)}"
        )
    return run.name, found


def _tasks(logs: Iterable[TaskLog]) -> str:
    return ", ".join(sorted({log.task for log in logs}))


def retry(source: ConfigSource, name: str, as_json: bool) -> None:
    """Run what failed, and what follows it, again in the same run.

    Args:
        source: Files and flags that make the configuration.
        name: A run's id, or its step.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    run = runs.resolve(name)
    runs.retry(run)
    url = runs.kubeflow.url(run.id)
    answer(as_json, {"run": run.id, "name": run.name, "url": url}, f"run {run.name} ({run.id}) runs again: {url}")


def cancel(source: ConfigSource, name: str | None, as_json: bool) -> None:
    """End a run, or all that are in flight. What they finished stays: the step's next run takes it up.

    Args:
        source: Files and flags that make the configuration.
        name: A run's id, or its step; None is all in flight.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    chosen = [runs.resolve(name)] if name else [run for run, _ in runs.all(_RECENT) if run.live]
    sentences = []
    for run in chosen:
        if run.live:
            runs.cancel(run)
            sentences.append(f"run {run.name} ({run.id}) is being cancelled: {runs.kubeflow.url(run.id)}")
        elif run.state == CANCELING:
            sentences.append(f"{run.name} is ending")
        else:
            sentences.append(f"run {run.name} ({run.id}) is {run.state} already")
    facts = [{"run": run.id, "name": run.name} for run in chosen if run.live]
    answer(as_json, facts, *(sentences or [f"no run of {runs.config.name} is in flight"]))
