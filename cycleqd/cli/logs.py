"""cycleqd logs: why a run failed, and what its tasks wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from cycleqd.cli.cluster import reach_runs, reach_store
from cycleqd.cli.output import plain, print_json, say, warn
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.run.decisions import FAILED, Run
from cycleqd.run.driver import FAILED_TASK, TaskLog
from cycleqd.run.kubeflow.logs import merged
from cycleqd.run.kubeflow.pods import Kubernetes
from cycleqd.run.local import runner as local
from cycleqd.search.config import Config
from cycleqd.storage.failures import Failure, find_failure
from cycleqd.storage.last_lines import LastLines, find_lines


def show(source: ConfigSource, name: str, task: str, everything: bool, lines: int, as_json: bool) -> None:
    """Why a run failed; then what its tasks wrote, the oldest first: those that failed, else all.

    A step that ran on this machine is looked for here, unless the configuration is of a cluster; any other there.

    Args:
        source: The configuration.
        name: A step, or the id of a run in a cluster.
        task: Only tasks of this name or beginning, this child or this pod; "" for any.
        everything: What KFP's launcher wrote around the tasks, and the pods of KFP's own drivers, too.
        lines: How many lines of each are shown, the last ones.
        as_json: Print JSON.

    Raises:
        InvalidInputError: There is no such run, or no log of it is left.
    """
    step, found, why = _find(source, name, everything)
    named = [log for log in found if not task or task in (log.task, log.name, log.child) or log.task.startswith(task)]
    if not named:
        raise InvalidInputError(f"run {step} has no logs of '{task}'; it has: {_tasks(found)}")
    failed = [log for log in named if log.phase == FAILED_TASK]
    shown = failed if failed and not (task or everything) else named
    keys = ("name", "task", "child", "phase", "ended", "started")
    facts = [{**{key: getattr(log, key) for key in keys}, "log": log.read(lines)} for log in shown]
    if as_json:
        print_json(facts)
        return
    if why:
        say(f"{plain(why)}\n")
    for fact in facts:
        title = " ".join(filter(None, (fact["task"], fact["child"])))
        ended = f" ({fact['ended']})" if fact["ended"] else ""
        text = fact["log"].rstrip() or "(it wrote nothing)"
        sys.stdout.write(plain(f"=== {title} · {fact['phase']}{ended} · {fact['name']}\n{text}\n\n"))
    if len(shown) < len(named):
        say(f"{len(named) - len(shown)} tasks that did not fail are left out; name one with --task: {_tasks(named)}")


def _find(source: ConfigSource, name: str, everything: bool) -> tuple[str, list[TaskLog], str]:
    """The step of a run, the logs of its tasks, at least one, and the sentence that says why it failed."""
    config = source.load()
    found = local.logs(config, name) if config.place.runner != "kubeflow" else []
    if found:
        return name, found, ""
    if config.place.services == "embedded":
        raise InvalidInputError(f"no logs of '{name}' are in {local.folder(config)}; there are: {local.logged(config)}")
    runs = reach_runs(source)
    run = runs.resolve(name)
    kept, failure = _recorded(config, run)
    try:
        pods = Kubernetes().pods(run.id, config.place.namespace, everything)
    except CycleQDError as error:
        if not kept:
            raise
        pods = []
        warn(f"{error}; only what tasks kept in S3 is shown")
    found = merged(pods, kept, everything)
    why = _why(run, failure, found)
    if not found:
        raise InvalidInputError(
            f"{f'{why}; ' if why else ''}run {run.name} ({run.id}) has no pods in namespace"
            f" '{config.place.namespace}', and none of its tasks has kept its last lines in S3: they did not begin, or"
            f" were killed; look at {runs.kubeflow.url(run.id)}"
        )
    return run.name, found, why


def _recorded(config: Config, run: Run) -> tuple[Sequence[LastLines], Failure | None]:
    """What the run's tasks left in S3: what they wrote, and the failure that explains it best."""
    try:
        store = reach_store(config)
        return find_lines(store, run.id), find_failure(store, run.id)
    except CycleQDError as error:
        warn(f"{error}; only what pods still hold is shown")
        return [], None


def _why(run: Run, failure: Failure | None, found: Iterable[TaskLog]) -> str:
    """Why a run failed: in its task's words, else by how its pods ended, else in KFP's words."""
    if run.state != FAILED:
        return ""
    head = f"run {run.name} ({run.id}) failed: "
    if failure is not None:
        return head + str(failure)
    ends = [f"{log.task} {log.child}".strip() + f" ended with {log.ended}" for log in found if log.ended]
    said = f"Kubeflow says: {run.reason}" if run.reason else "Kubeflow does not say why"
    return f"{head}no task recorded why, so one was killed or did not begin; {'; '.join(ends) or said}"


def _tasks(logs: Iterable[TaskLog]) -> str:
    return ", ".join(sorted({log.task for log in logs}))
