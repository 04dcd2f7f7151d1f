"""cycleqd submit and drive: what is due on a cluster, once or until all is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.text import Text

from cycleqd.cli.output import errors, plain, print_json, say
from cycleqd.cli.progress import counting
from cycleqd.cli.run import Display, summarise
from cycleqd.cli.source import ConfigSource
from cycleqd.run import checks, preflight
from cycleqd.run.checks import Findings
from cycleqd.run.decisions import FAILED, Action, Cancel, Done, Replace, Retry, Run, Standing, Start, Wait
from cycleqd.run.driver import Driver, standing
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Follow, Runs, Steps
from cycleqd.run.sources import bring
from cycleqd.run.steps import Step, find_state
from cycleqd.search.config import Config
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings

_WORDS = {Start: "started", Wait: "in flight", Retry: "retried", Done: "complete"}


@dataclass(frozen=True)
class Access:
    """An evolution on a cluster within reach."""

    config: Config
    kubeflow: Kubeflow
    store: Store

    def driver(
        self,
        told: Callable[[Action, Standing], None],
        follow: Follow = lambda task, event: None,
        warned: Callable[[str], None] = lambda sentence: None,
    ) -> Driver:
        """What decides about its runs, and acts."""
        upload = partial(bring, self.config, self.store, counting)
        steps = Steps(self.config, self.kubeflow, self.store, upload, follow, warned)
        return Driver(steps, self.standing, self.config.place.retries, told, warned)

    def standing(self) -> Standing:
        """What of the evolution is done, read from S3 now."""
        return standing(self.config, self.store)


def reach_runs(source: ConfigSource) -> Runs:
    """The runs alone: neither S3 nor Kubernetes are asked."""
    config = source.load()
    return Runs(config, Kubeflow(config.place))


def reach(source: ConfigSource) -> Access:
    """Check, then connect. Raises UnavailableError when no server answers, else InvalidInputError with all problems."""
    config = source.load()
    findings = check_placement(config)
    kubeflow, store = Kubeflow(config.place), reach_store(config)
    preflight.check_store(store)
    preflight.check_server(kubeflow, findings)
    preflight.check_objects(config.place, findings)
    preflight.check_tracking(os.environ.get("MLFLOW_TRACKING_URI"), findings)
    config = adopt(store, config)
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


def submit(source: ConfigSource, as_json: bool) -> None:
    """Do the one thing that is due."""
    access = reach(source)
    action, run = access.driver(_told_cancelling).submit()
    facts = describe(access, action, run)
    if as_json:
        print_json(facts)
        return
    if run is None:
        say(f"{access.config.name} is complete")
        return
    say(f"{run.name}: {facts['action']} as run {run.id}")
    say(facts["url"])
    say(f"go on with: cycleqd drive {source.flags}")


def describe(access: Access, action: Action, run: Run | None) -> dict[str, Any]:
    """What was done, as JSON."""
    facts = {"evolution": access.config.name, "action": _WORDS[type(action)], "run": None, "step": None, "url": None}
    return facts | {"run": run.id, "step": run.name, "url": access.kubeflow.url(run.id)} if run else facts


def _told_cancelling(action: Action, where: Standing) -> None:
    if isinstance(action, Cancel):
        errors.print(Text(f"run {action.run.id} is cancelled: an older run of {action.run.name} is in flight"))


def drive(source: ConfigSource, as_json: bool) -> None:
    """Act until all is done. Interrupted, it leaves the run going and says so."""
    access = reach(source)
    with Display(access.config, partial(find_state, access.store)) as display:
        watch = Watch(access, display)
        try:
            access.driver(watch.told, display.task, display.warns).drive()
        except (KeyboardInterrupt, SystemExit):
            display.progress.stop()
            errors.print(Text(watch.left(source)))
            raise
    state = find_state(access.store)
    if state is None:
        return
    summary = summarise(access.config, state)
    if as_json:
        print_json(summary)
        return
    say(f"done: {summary['generations']} generations, {summary['evaluations']} children evaluated")
    say(" · ".join(f"cycleqd {look} {source.flags}" for look in ("models", "lineage final", "report")))


class Watch:
    """Tells the terminal what the driver does."""

    def __init__(self, access: Access, display: Display) -> None:
        self.access = access
        self.display = display
        self.run: Run | None = None

    def told(self, action: Action, where: Standing) -> None:
        """As Display does, and a line for each run and for what is out of the ordinary."""
        self.display.told(action, where)
        show = self.display.progress.console.print
        match action:
            case Start():
                self.run = None
            case Wait(run):
                if self.run is None or self.run.id != run.id:
                    show(Text(f"{run.name} is run {run.id}"))
                self.run = run
            case Retry(run, pause):
                self.run = run
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

    def left(self, source: ConfigSource) -> str:
        """What an interrupted drive leaves behind."""
        again = f"go on with: cycleqd drive {source.flags}"
        if self.run is None:
            return f"\nstopped watching; what was started goes on (cycleqd runs {source.flags}); {again}"
        return (
            f"\nstopped watching; run {self.run.name} ({self.run.id}) goes on: {self.access.kubeflow.url(self.run.id)};"
            f" {again}; end it with: cycleqd cancel {self.run.name} {source.flags}"
        )
