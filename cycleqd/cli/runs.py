"""cycleqd runs, retry and cancel: looking after what was started."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cycleqd.cli.cluster import reach_runs
from cycleqd.cli.output import answer, duration, print_json, say, table
from cycleqd.cli.source import ConfigSource
from cycleqd.run.decisions import CANCELING, ENDED, Run
from cycleqd.run.kubeflow.compiled import Compiled, images
from cycleqd.run.kubeflow.liveness import Liveness
from cycleqd.run.kubeflow.runs import Runs
from cycleqd.run.kubeflow.waiting import Waits
from cycleqd.run.steps import Step

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_RECENT = 100
GONE = "its workflow is gone: `cycleqd drive`, submit or cancel archives it"


def show(source: ConfigSource, limit: int, as_json: bool) -> None:
    """A table of the evolution's runs, the newest first.

    Args:
        source: Files and flags that make the configuration.
        limit: So many runs; 0 is all.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    liveness, waits = Liveness(runs.kubeflow, runs.config.place), Waits(runs.config.place)
    facts = [
        {
            **_gather(run, one, runs, liveness),
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
            f"{fact['state']}, gone" if fact["gone"] else fact["state"],
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
        if fact["gone"]:
            say(f"run {fact['name']} ({fact['run']}) is {fact['state']}, but {GONE}")
        for sentence in fact["waits"]:
            say(f"{fact['name']}: {sentence}")


def _gather(run: Run, one: V2beta1Run, runs: Runs, liveness: Liveness) -> dict[str, Any]:
    """A run as JSON values."""
    step = Step.named(run.name)
    covered = {step.first, step.first + step.count - 1} if step is not None and step.count else set()
    finished = one.finished_at if run.state in ENDED and one.finished_at and one.finished_at.year > 1970 else None
    until = finished or (None if run.state in ENDED else datetime.now(UTC))
    return {
        "run": run.id,
        "name": run.name,
        "state": run.state,
        "gone": run.state not in ENDED and liveness.gone(run.id),
        "generation": "–".join(map(str, sorted(covered))),
        "scheduled": run.scheduled,
        "started": run.created_at.isoformat() if run.created_at else None,
        "finished": finished.isoformat() if finished else None,
        "seconds": max(0.0, (until - run.created_at).total_seconds()) if until and run.created_at else None,
        "error": run.reason,
        "url": runs.kubeflow.url(run.id),
    }


def retry(source: ConfigSource, name: str, as_json: bool) -> None:
    """Run what failed, and what follows it, again in the same run, which keeps what it was compiled with.

    Args:
        source: Files and flags that make the configuration.
        name: A run's id, or its step.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    run = runs.resolve(name)
    url, compiled = runs.kubeflow.url(run.id), Compiled.of(runs.kubeflow.get_run(run.id))
    runs.retry(run)
    facts: dict[str, Any] = {"run": run.id, "name": run.name, "url": url, "version": None, "images": []}
    if compiled.source is not None:
        version = runs.kubeflow.get_version(compiled.source)
        facts |= {"version": version.display_name, "images": sorted(set(images(version).values()))}
    answer(
        as_json,
        facts,
        f"run {run.name} ({run.id}) runs again: {url}",
        f"it keeps what it was compiled with: version {facts['version']}, {', '.join(facts['images'])}; what was"
        f" changed since arrives with a new run only: cycleqd cancel {run.name} {source.flags}, then cycleqd submit"
        f" {source.flags}",
    )


def cancel(source: ConfigSource, name: str | None, as_json: bool) -> None:
    """End a run, or all that are in flight. What they finished stays: the step's next run takes it up.

    Args:
        source: Files and flags that make the configuration.
        name: A run's id, or its step; None is all in flight.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    chosen = [runs.resolve(name)] if name else [run for run, _ in runs.all(_RECENT) if run.state not in ENDED]
    sentences = []
    liveness = Liveness(runs.kubeflow, runs.config.place)
    for run in chosen:
        if run.state not in ENDED and liveness.gone(run.id):
            runs.kubeflow.archive(run.id)
            sentences.append(f"run {run.name} ({run.id}) had lost its workflow, and is archived")
        elif run.live:
            runs.cancel(run)
            sentences.append(f"run {run.name} ({run.id}) is being cancelled: {runs.kubeflow.url(run.id)}")
        elif run.state == CANCELING:
            sentences.append(f"{run.name} is ending")
        else:
            sentences.append(f"run {run.name} ({run.id}) is {run.state} already")
    facts = [{"run": run.id, "name": run.name} for run in chosen if run.live]
    answer(as_json, facts, *(sentences or [f"no run of {runs.config.name} is in flight"]))
