"""cycleqd validate: every problem at once, each one sentence; then what the evolution will cost."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping

from rich.text import Text

from cycleqd.cli.output import console, duration, plain, print_json, say, size
from cycleqd.cli.progress import parts as progress
from cycleqd.cli.session import connect
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.run import checks, cluster_checks, machine, preflight, replies
from cycleqd.run.checks import Findings
from cycleqd.run.estimate import SERVER_RATE, Estimate, ServerCost, estimate, measured
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.local.services import running
from cycleqd.run.models import try_models
from cycleqd.run.replies import Generated, Replies
from cycleqd.run.sizes import sizes
from cycleqd.run.steps import find_state
from cycleqd.search.config import Config
from cycleqd.storage.client import probe
from cycleqd.storage.objects import Store

Samples = Mapping[str, Mapping[str, int]]
"""Of each task the number of samples by split; nothing where its data are in S3."""


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
        _check_cluster(config, findings)
    with progress("checking", len(config.tasks) + 3) as begin:
        here, device = machine.host(config, begin)
        findings.problems += [need.missing for need in here if need.missing]
        samples = checks.check_tasks(config, findings, begin)
        findings.warnings += checks.split_warnings(config, samples)
        cost = _check_services(config, samples, findings, begin)
    if cost is not None and device.kind:
        findings.problems += filter(None, [machine.memory(config, device, cost.largest).missing])
    _print(findings, cost, samples, as_json)
    if findings.problems:
        sys.exit(InvalidInputError.exit_code)


def _check_cluster(config: Config, findings: Findings) -> None:
    """What the configuration shows, and the cluster where it answers."""
    problems = [*cluster_checks.check_cluster(config)]
    findings.problems += problems
    findings.warnings += cluster_checks.cluster_warnings(config)
    if problems:
        return
    try:
        preflight.check_server(Kubeflow(config.place), findings)
        preflight.check_objects(config.place, findings)
    except CycleQDError as error:
        findings.warnings.append(f"{error}; the cluster was not checked")


def _check_services(
    config: Config, samples: Samples, findings: Findings, begin: Callable[[str], None]
) -> Estimate | None:
    """What needs S3 and MLflow; the cost once the models are known to open."""
    begin("S3 and MLflow")
    try:
        with running(config.place) as environment:
            opened = connect(config, environment)
            checks.check_tracking(opened.settings, findings)
            probe(opened.store)
            begin("the models")
            return _check_models(config, samples, opened.store, findings)
    except CycleQDError as error:
        findings.collect(error)
        begin("the models")
        return _check_models(config, samples, None, findings)


def _check_models(config: Config, samples: Samples, store: Store | None, findings: Findings) -> Estimate | None:
    given, config = config, checks.decide(config, store, findings)
    findings.problems += checks.check_server(config)
    opened = checks.check_models(config, store, findings)
    known, chats = set(findings.problems), [task.chat for task in config.tasks.values()]
    findings.problems += [found for found in try_models(opened, config.evaluation.engine, chats) if found not in known]
    seconds: dict[str, float] = {}
    generated: dict[str, Generated] = {}
    if store is not None:
        seconds, generated = measured(store), replies.generated(store, config)
        state = find_state(store)
        findings.warnings += checks.flat_tasks(state) if state else []
        checks.check_seeded(given, store, findings)
    if not opened or (config.in_span and len(opened) <= len(config.models.experts)):
        return None
    stored = sizes(config, opened)
    cost = estimate(config, stored, seconds, samples, generated)
    checks.check_cache(config, cost.swapped, findings)
    needed = cost.given + cost.kept if config.place.services == "embedded" else 4 * stored.largest
    checks.check_disk(config, needed if config.place.runner != "kubeflow" else 0, findings)
    return cost


def _print(findings: Findings, cost: Estimate | None, samples: Samples, as_json: bool) -> None:
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
        for line in cost_lines(cost):
            say(line)
    say(f"{len(findings.problems)} problems, {len(findings.warnings)} warnings")


def cost_lines(cost: Estimate) -> Iterator[str]:
    """The cost of an evolution, a sentence a line.

    Args:
        cost: The estimate.
    """
    time = "unknown until a first evaluation is recorded" if cost.seconds is None else duration(cost.seconds)
    yield (
        f"cost: {cost.models} models, {cost.evaluations} evaluations (a model on a task), at most {cost.engine_starts}"
        f" engine starts; stages' time: {time}; {cost.pods} pods on a cluster"
    )
    if cost.baseline:
        yield (
            f"baseline: {cost.baseline} of these evaluations tune λ of task arithmetic, so that the report can say"
            " whether the search was worth it; method.baselines.task_arithmetic: [] leaves them out"
        )
    loaded = f"; an engine makes an adapter of {size(cost.adapter)} of it" if cost.adapter else ""
    yield (
        f"bytes: {size(cost.given)} of base and experts; beside them {size(cost.written)} written, at most"
        f" {size(cost.kept)} kept ({size(cost.child)} a child{loaded})"
    )
    if cost.swaps:
        yield (
            "children are scored by dense swaps, because models.keep_dense keeps what no adapter carries: up to"
            f" {cost.swaps} times a full checkpoint of {size(cost.swapped)} is made from base and full experts in the"
            " machine's cache (place.cache_size) and swapped into the engine; what is kept is combined, not mutated"
        )
    yield "generating: unknown, as samples in S3 are not counted here" if cost.replies is None else _said(cost.replies)
    if cost.served:
        yield _served(cost.served)


def _served(found: ServerCost) -> str:
    rate, everything = size(SERVER_RATE), duration(found.adapters * found.seconds)
    disk, memory = size(found.folder), size(found.slot)
    return (
        f"server: it starts once, reads base and basis ({size(found.basis)}) once, and makes at most {found.adapters}"
        f" adapters of cores, each in {found.seconds:.2g} s of one CPU thread at {rate} a second (measured:"
        f" docs/engines.md; {everything} in all) and {disk} of its disk; {found.slots} share a batch, each"
        f" in {memory} of the GPU's memory, set aside when it starts"
    )


def _said(found: Replies) -> str:
    each = ", ".join(f"{task} {tokens}" for task, tokens in found.a_sample.items())
    assumed = f"; assumed: {', '.join(found.assumed)}" if found.assumed else ""
    source = "measured" if found.rate_measured else "assumed"
    return (
        f"generating: {found.tokens / 1e6:.1f} million tokens of replies (a sample: {each}{assumed}), which take one"
        f" GPU {found.hours:.1f} hours at {found.rate:,.0f} tokens/s ({source}), apart from engine starts"
    )
