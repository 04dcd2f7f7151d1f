"""cycleqd validate: every problem at once, each one sentence; then what the evolution will cost."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.text import Text

from cycleqd.cli.output import console, duration, plain, print_json, say, size
from cycleqd.cli.progress import parts
from cycleqd.cli.session import connect
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.run import checks
from cycleqd.run.checks import Findings
from cycleqd.run.estimate import Estimate, estimate, measured
from cycleqd.run.local.services import running
from cycleqd.run.steps import find_state
from cycleqd.search.config import Config
from cycleqd.storage.objects import Store, probe


def show(source: ConfigSource, as_json: bool) -> None:
    """Print every problem and warning and the cost; exits with InvalidInputError's code where there is a problem.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    findings = Findings()
    try:
        config = source.load()
    except InvalidInputError as error:
        findings.collect(error)
        _print(findings, None, {}, as_json)
        sys.exit(InvalidInputError.exit_code)
    findings.warnings += checks.check_method(config)
    if config.place.runner == "kubeflow":
        findings.problems += checks.check_cluster(config)
        findings.warnings += checks.cluster_warnings(config)
    with parts("checking", len(config.tasks) + 2) as begin:
        samples = checks.check_tasks(config, findings, begin)
        findings.warnings += checks.split_warnings(config, samples)
        cost = _check_services(config, findings, begin)
    _print(findings, cost, samples, as_json)
    if findings.problems:
        sys.exit(InvalidInputError.exit_code)


def _check_services(config: Config, findings: Findings, begin: Callable[[str], None]) -> Estimate | None:
    """What needs S3 and MLflow; the cost once the models are known to open."""
    begin("S3 and MLflow")
    try:
        with running(config.place) as environment:
            opened = connect(config, environment)
            checks.check_tracking(opened.settings, findings)
            probe(opened.store)
            begin("the models")
            return _check_models(config, opened.store, findings)
    except CycleQDError as error:
        findings.collect(error)
        begin("the models")
        return _check_models(config, None, findings)


def _check_models(config: Config, store: Store | None, findings: Findings) -> Estimate | None:
    opened = checks.check_models(config, store, findings)
    seconds: dict[str, float] = {}
    if store is not None:
        seconds = measured(store)
        state = find_state(store)
        findings.warnings += checks.flat_tasks(state) if state else []
    if not opened:
        return None
    largest = max(sum(model.sizes.values()) for model in opened.values())
    cost = estimate(config, largest, seconds)
    needed = cost.kept if config.place.services == "embedded" else 4 * largest
    checks.check_disk(config, needed if config.place.runner != "kubeflow" else 0, findings)
    return cost


def _print(findings: Findings, cost: Estimate | None, samples: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        facts = {"problems": findings.problems, "warnings": findings.warnings, "samples": samples}
        print_json({**facts, "estimate": dataclasses.asdict(cost) if cost else None})
        return
    for label, style, sentences in (("problem", "red", findings.problems), ("warning", "yellow", findings.warnings)):
        for sentence in sentences:
            console.print(Text(f"{label}: ", style=style).append(plain(sentence), style="default"))
    for task, counts in samples.items():
        if counts:
            say(f"task '{task}': {counts['search']} search samples, {counts['test']} test samples")
    if cost is not None:
        _print_cost(cost)
    say(f"{len(findings.problems)} problems, {len(findings.warnings)} warnings")


def _print_cost(cost: Estimate) -> None:
    time = "unknown until a first evaluation is recorded" if cost.seconds is None else duration(cost.seconds)
    say(
        f"cost: {cost.models} models, {cost.evaluations} evaluations (a model on a task); stages' time: {time};"
        f" {cost.pods} pods on a cluster; {size(cost.written)} of checkpoints written, at most {size(cost.kept)} kept"
    )
