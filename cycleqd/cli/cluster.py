"""cycleqd submit and drive: what is due on a cluster, once or until all is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.text import Text

from cycleqd.cli.display import Display, cancelled, conclude, replaced
from cycleqd.cli.output import answer, errors, warn
from cycleqd.cli.progress import counting
from cycleqd.cli.session import adopted
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError, UnavailableError
from cycleqd.run import checks, cluster_checks, preflight, tracked
from cycleqd.run.checks import Findings
from cycleqd.run.decisions import FAILED, Action, Cancel, Done, Position, Replace, Retry, Run, Start, Wait
from cycleqd.run.driver import Driver, position
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Follow, Runs, Steps
from cycleqd.run.remaining import seconds_left
from cycleqd.run.sources import bring
from cycleqd.run.steps import Step, find_state
from cycleqd.search.config import Config
from cycleqd.storage.evolution import current
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking import ending

_WORDS = {Start: "started", Wait: "in flight", Retry: "retried", Done: "complete"}


@dataclass(frozen=True)
class Access:
    """An evolution on a cluster within reach."""

    config: Config
    kubeflow: Kubeflow
    store: Store

    def driver(
        self,
        announce: Callable[[Action, Position], None],
        follow: Follow = lambda task, event: None,
        warned: Callable[[str], None] = lambda sentence: None,
        fresh: bool = False,
    ) -> Driver:
        """What decides about its runs, and acts.

        Args:
            announce: Called with every action before it is done, and with where the evolution is.
            follow: Called with a task and what became of it.
            warned: Called with every warning, a sentence.
            fresh: Whether a run that has ended without finishing its step is replaced.
        """
        upload = partial(bring, self.config, self.store, counting)
        steps = Steps(self.config, self.kubeflow, self.store, upload, follow, warned)
        where = partial(position, self.config, self.store)
        return Driver(steps, where, self.config.place.retries, announce, warned, fresh=fresh)


def reach_runs(source: ConfigSource) -> Runs:
    """The runs alone: neither S3 nor Kubernetes are asked.

    Args:
        source: Files and flags that make the configuration.
    """
    config = source.load()
    return Runs(config, Kubeflow(config.place))


def reach(source: ConfigSource, fresh: bool) -> Access:
    """Check, then connect.

    Args:
        source: Files and flags that make the configuration.
        fresh: Whether a run of seeding that failed is replaced.

    Raises:
        UnavailableError: No server answers.
        InvalidInputError: Anything else is wrong: all problems at once.
    """
    config = source.load()
    kubeflow, findings = reach_server(config)
    store = reach_store(config)
    preflight.check_store(store)
    preflight.check_tracking(os.environ.get("MLFLOW_TRACKING_URI"), findings)
    config = adopted(store, config)
    if find_state(store) is None:
        findings.warnings += checks.check_method(config)
        if fresh or not _seeds(config, kubeflow):
            preflight.check_inputs(config, store, findings)
    warn_all(findings)
    preflight.refuse(findings)
    return Access(config, kubeflow, store)


def reach_server(config: Config) -> tuple[Kubeflow, Findings]:
    """The server, and what was found of it and its objects.

    Args:
        config: One whose place is a cluster.

    Raises:
        InvalidInputError: The configuration cannot run on a cluster.
    """
    findings = Findings([*cluster_checks.check_cluster(config)], [*cluster_checks.cluster_warnings(config)])
    preflight.refuse(findings)
    kubeflow = Kubeflow(config.place)
    preflight.check_server(kubeflow, findings)
    preflight.check_objects(config.place, findings)
    return kubeflow, findings


def _seeds(config: Config, kubeflow: Kubeflow) -> bool:
    """Whether a run of seeding is in flight or to be retried: it knows its inputs, which may not be seen from here."""
    return any(run.live or run.state == FAILED for run in Runs(config, kubeflow).runs([Step("seeding").name]))


def reach_store(config: Config) -> Store:
    """S3 as this machine reaches it. MLflow, which only pods need, may be unknown here.

    Args:
        config: Its place names the bucket.
    """
    return Store.connect(_settings(config), config.name)


def _settings(config: Config) -> Settings:
    known = {name: value for name, value in os.environ.items() if value}
    place = {"CYCLEQD_BUCKET": config.place.bucket}
    return Settings.from_environment({"MLFLOW_TRACKING_URI": "unknown", **known, **place})


def _tracking(config: Config) -> Settings | None:
    """Where MLflow is, None where this machine does not know."""
    return _settings(config) if os.environ.get("MLFLOW_TRACKING_URI") else None


def warn_all(findings: Findings) -> None:
    """Print the findings' warnings on stderr.

    Args:
        findings: Only their warnings count.
    """
    for sentence in findings.warnings:
        warn(sentence)


def submit(source: ConfigSource, fresh: bool, as_json: bool) -> None:
    """Do the one thing that is due.

    Args:
        source: Files and flags that make the configuration.
        fresh: Replace a run that has ended without finishing its step.
        as_json: Print JSON.
    """
    access = reach(source, fresh)
    action, run = access.driver(_tell, fresh=fresh).submit()
    facts = _describe(access, action, run)
    if run is None:
        answer(as_json, facts, f"{access.config.name} is complete")
        return
    again = f"go on with: cycleqd drive {source.flags}"
    answer(as_json, facts, f"{run.name}: {facts['action']} as run {run.id}", facts["url"], again)


def _describe(access: Access, action: Action, run: Run | None) -> dict[str, Any]:
    """What was done, as JSON."""
    facts = {"evolution": access.config.name, "action": _WORDS[type(action)], "run": None, "step": None, "url": None}
    return facts | {"run": run.id, "step": run.name, "url": access.kubeflow.url(run.id)} if run else facts


def _tell(action: Action, where: Position) -> None:
    """What is done to a run in the way of the one that is due."""
    if isinstance(action, Cancel):
        errors.print(Text(cancelled(action.run)))
    elif isinstance(action, Replace):
        errors.print(Text(replaced(action.run)))


def drive(source: ConfigSource, fresh: bool, as_json: bool) -> None:
    """Act until all is done. Interrupted, it leaves the run going and says so.

    Args:
        source: Files and flags that make the configuration.
        fresh: Replace a run that has ended without finishing its step.
        as_json: Print JSON.

    Raises:
        UnavailableError: Kubeflow or S3 do not answer; or all is done, but MLflow was away and lacks some.
    """
    access = reach(source, fresh)
    left = partial(seconds_left, access.config, access.store)
    with Display(access.config, partial(find_state, access.store), left) as display:
        try:
            access.driver(display.acts, display.task, display.warns, fresh).drive()
        except (KeyboardInterrupt, SystemExit):
            display.progress.stop()
            errors.print(Text(_left(access, display.run, source)))
            raise
        except UnavailableError:  # a run may go on that cannot be seen now
            raise
        except CycleQDError:
            tracked.stopped(_tracking(access.config), access.store, ending.FAILED)
            raise
    trouble = tracked.finish(_tracking(access.config), access.store)
    conclude(access.config, current(access.store)[1], access.store, source, as_json)
    if trouble is not None:
        raise trouble


def _left(access: Access, run: Run | None, source: ConfigSource) -> str:
    """What an interrupted drive leaves behind, and how to go on.

    Args:
        access: The evolution on its cluster.
        run: The run in flight, None when there is none or it was not seen yet.
        source: The configuration, for the commands that are named.
    """
    again = f"go on with: cycleqd drive {source.flags}"
    if run is None:
        return f"\nstopped watching; what was started goes on (cycleqd runs {source.flags}); {again}"
    return (
        f"\nstopped watching; run {run.name} ({run.id}) goes on: {access.kubeflow.url(run.id)};"
        f" {again}; end it with: cycleqd cancel {run.name} {source.flags}"
    )
