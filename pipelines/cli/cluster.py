"""cycleqd submit and drive: what is due on a cluster, once or until all is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.text import Text

from components.seed.stage import refuse_other_config
from components.shared.settings import Settings
from components.shared.store.objects import Store
from cycleqd.config import Config
from pipelines import checks, preflight
from pipelines.checks import Findings
from pipelines.cli.given import Given
from pipelines.cli.output import errors, plain, print_json, say
from pipelines.cli.progress import counting
from pipelines.cli.run import Display, summarise
from pipelines.cluster import Follow, Runs, Steps, standing
from pipelines.conduct import Conductor
from pipelines.decisions import FAILED, Action, Cancel, Done, Replace, Retry, Run, Standing, Start, Wait
from pipelines.kubeflow import Kubeflow
from pipelines.sources import bring
from pipelines.steps import Step, find_state

_WORDS = {Start: "started", Wait: "in flight", Retry: "retried", Done: "complete"}


@dataclass(frozen=True)
class Access:
    """An evolution on a cluster within reach."""

    config: Config
    kubeflow: Kubeflow
    store: Store

    def conductor(
        self,
        told: Callable[[Action, Standing], None],
        follow: Follow = lambda task, event: None,
        warned: Callable[[str], None] = lambda sentence: None,
    ) -> Conductor:
        """What decides about its runs, and acts."""
        upload = partial(bring, self.config, self.store, counting)
        steps = Steps(self.config, self.kubeflow, self.store, upload, follow, warned)
        return Conductor(steps, self.standing, self.config.place.retries, told, warned)

    def standing(self) -> Standing:
        """What of the evolution is done, read from S3 now."""
        return standing(self.config, self.store)


def reach_runs(given: Given) -> Runs:
    """The runs alone: neither S3 nor Kubernetes are asked."""
    config = given.load()
    return Runs(config, Kubeflow(config.place))


def reach(given: Given) -> Access:
    """Check, then connect. Raises UnavailableError when no server answers, else InvalidInputError with all problems."""
    config = given.load()
    findings = check_placement(config)
    kubeflow, store = Kubeflow(config.place), reach_store(config)
    preflight.check_store(store)
    preflight.check_server(kubeflow, findings)
    preflight.check_objects(config.place, findings)
    preflight.check_tracking(os.environ.get("MLFLOW_TRACKING_URI"), findings)
    refuse_other_config(store, config)
    if find_state(store) is None:
        findings.warnings += checks.check_method(config)
        if not _seeds(config, kubeflow):
            preflight.check_inputs(config, store, findings)
    warn(findings)
    preflight.refuse(findings)
    return Access(config, kubeflow, store)


def _seeds(config: Config, kubeflow: Kubeflow) -> bool:
    """Whether a run of seeding is in flight or to be retried: it knows its inputs, which may not be seen from here."""
    return any(run.live or run.state == FAILED for run in Runs(config, kubeflow).runs([Step("seeding").name]))


def check_placement(config: Config) -> Findings:
    """What the configuration alone shows. Raises InvalidInputError for problems."""
    findings = Findings([*checks.check_cluster(config)], [*checks.cluster_warnings(config)])
    preflight.refuse(findings)
    return findings


def reach_store(config: Config) -> Store:
    """S3 as this machine reaches it. MLflow, which only pods need, may be unknown here."""
    known = {name: value for name, value in os.environ.items() if value}
    place = {"CYCLEQD_BUCKET": config.place.bucket}
    return Store.connect(Settings.from_environment({"MLFLOW_TRACKING_URI": "unknown", **known, **place}), config.name)


def warn(findings: Findings) -> None:
    """Print the findings' warnings on stderr."""
    for sentence in findings.warnings:
        errors.print(Text(f"warning: {plain(sentence)}"))


def submit(given: Given, as_json: bool) -> None:
    """Do the one thing that is due."""
    access = reach(given)
    action, run = access.conductor(_told_cancelling).submit()
    facts = describe(access, action, run)
    if as_json:
        print_json(facts)
        return
    if run is None:
        say(f"{access.config.name} is complete")
        return
    say(f"{run.name}: {facts['action']} as run {run.id}")
    say(facts["url"])
    say(f"go on with: cycleqd drive {given.flags}")


def describe(access: Access, action: Action, run: Run | None) -> dict[str, Any]:
    """What was done, as JSON."""
    facts = {"evolution": access.config.name, "action": _WORDS[type(action)], "run": None, "step": None, "url": None}
    return facts | {"run": run.id, "step": run.name, "url": access.kubeflow.url(run.id)} if run else facts


def _told_cancelling(action: Action, where: Standing) -> None:
    if isinstance(action, Cancel):
        errors.print(Text(f"run {action.run.id} is cancelled: an older run of {action.run.name} is in flight"))


def drive(given: Given, as_json: bool) -> None:
    """Act until all is done. Interrupted, it leaves the run going and says so."""
    access = reach(given)
    with Display(access.config, find_state(access.store)) as display:
        watch = Watch(access, display)
        try:
            access.conductor(watch.told, display.task, display.warns).drive()
        except (KeyboardInterrupt, SystemExit):
            display.progress.stop()
            errors.print(Text(watch.left(given)))
            raise
    state = find_state(access.store)
    if state is None:
        return
    summary = summarise(access.config, state)
    if as_json:
        print_json(summary)
        return
    say(f"done: {summary['generations']} generations, {summary['evaluations']} children evaluated")
    say(" · ".join(f"cycleqd {look} {given.flags}" for look in ("models", "lineage final", "report")))


class Watch:
    """Tells the terminal what the conductor does."""

    def __init__(self, access: Access, display: Display) -> None:
        self.access = access
        self.display = display
        self.before: Standing | None = None
        self.run: Run | None = None

    def told(self, action: Action, where: Standing) -> None:
        """A line a finished step, the running step beside the bar, a line for what is out of the ordinary."""
        if self.before is not None and self.before != where and self.before.due is not None:
            self.display.ended(self.before.due, find_state(self.access.store))
        self.before, show = where, self.display.progress.console.print
        match action:
            case Start(step):
                self.run = None
                self.display.starts(step, None)
            case Wait(run):
                if self.run is None or self.run.id != run.id:
                    show(Text(f"{run.name} is run {run.id}"))
                self.run = run
                self.display.begins(run.name)
            case Retry(run, pause):
                self.run = None  # nothing is in flight during the pause
                why = f": {plain(run.why)}" if run.why else ""
                of = f"{run.retries + 1} of {self.access.config.place.retries}"
                show(
                    Text(f"run {run.name} ({run.id}) failed{why}; what failed in it runs again in {pause:.0f} s ({of})")
                )
            case Replace(run):
                show(
                    Text(
                        f"run {run.name} ({run.id}) is {run.state} without a pod: it is archived, and a new one begins"
                    )
                )
            case Cancel(run):
                show(Text(f"run {run.id} is cancelled: an older run of {run.name} is in flight"))

    def left(self, given: Given) -> str:
        """What an interrupted drive leaves behind."""
        again = f"go on with: cycleqd drive {given.flags}"
        if self.run is None:
            return f"\nstopped watching; what was started goes on (cycleqd runs {given.flags}); {again}"
        return (
            f"\nstopped watching; run {self.run.name} ({self.run.id}) goes on: {self.access.kubeflow.url(self.run.id)};"
            f" {again}; end it with: cycleqd cancel {self.run.name} {given.flags}"
        )
