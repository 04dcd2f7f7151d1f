"""cycleqd schedule and unschedule: generations by the clock."""

from __future__ import annotations

import hashlib
import json as json_
import re
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text

from cycleqd.cli.cluster import reach_runs, reach_server, reach_store, warn_all
from cycleqd.cli.output import answer, errors
from cycleqd.cli.session import adopted
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run import preflight
from cycleqd.run.decisions import Run
from cycleqd.run.kubeflow.runs import Runs
from cycleqd.run.kubeflow.schedules import retire
from cycleqd.run.steps import Step, arguments
from cycleqd.storage.evolution import find_head
from cycleqd.storage.objects import Store

if TYPE_CHECKING:
    from kfp_server_api import V2beta1RecurringRun

_FIELD = re.compile(r"[0-9A-Za-z*/,?-]+")
_NEXT = -1  # the generation after HEAD, read when the run begins
_SETTINGS = "settings "


def schedule(source: ConfigSource, cron: str, as_json: bool) -> None:
    """Have the next generations run by the clock. The same settings again change nothing, others replace.

    Args:
        source: Files and flags that make the configuration.
        cron: Six fields, seconds first.
        as_json: Print JSON.
    """
    fields = cron.split()
    if len(fields) != 6 or not all(_FIELD.fullmatch(field) for field in fields):
        raise InvalidInputError(
            f"--cron is '{cron}'; write six fields, seconds first: '0 */30 * * * *' is every half hour"
        )
    config = source.load()
    kubeflow, findings = reach_server(config)
    store = reach_store(config)
    if find_head(store) is None:
        findings.problems.append(
            f"evolution '{config.name}' is not seeded yet, and a schedule only runs generations:"
            f" cycleqd submit {source.flags}"
        )
    config = adopted(store, config)
    warn_all(findings)
    preflight.refuse(findings)
    cron = " ".join(fields)
    made, schedule_id = _apply(Runs(config, kubeflow), store, cron, source)
    facts = {"evolution": config.name, "cron": cron, "schedule": schedule_id, "changed": made}
    done = f"{config.name} {'scheduled' if made else 'is scheduled so already'}: {cron} ({schedule_id})"
    answer(as_json, facts, f"{done}; end it with: cycleqd unschedule {source.flags}")


def _apply(runs: Runs, store: Store, cron: str, source: ConfigSource) -> tuple[bool, str]:
    """Whether anything was changed, and the schedule's id.

    The old one goes first, when its run in flight has ended: killed in between, there is none, which the next call
    mends; two would run side by side.
    """
    experiment = runs.kubeflow.experiment(runs.config.name)
    count = runs.config.place.generations_per_run
    version = runs.version("generation", count)
    parameters = {**arguments(runs.config, store, Step("generation", 0, count), None), "generation": _NEXT}
    text = json_.dumps([cron, version, parameters, runs.config.place.service_account], sort_keys=True)
    description = _SETTINGS + hashlib.sha256(text.encode()).hexdigest()
    name = runs.full_name("schedule")
    found = runs.kubeflow.schedules(experiment, name)
    same = [one for one in found if one.description == description and not _disabled(one)]
    retire(runs, [one for one in found if one not in same[:1]], False, partial(_tell, source, False))
    if same:
        return False, str(same[0].recurring_run_id)
    body = {**runs.body(parameters), "description": description}
    return True, str(runs.kubeflow.create_schedule(experiment, name, version, cron, body).recurring_run_id)


def _disabled(one: V2beta1RecurringRun) -> bool:
    return bool(one.mode == "DISABLE" or one.status == "DISABLED")


def unschedule(source: ConfigSource, now: bool, as_json: bool) -> None:
    """Have the schedule start nothing more, and remove it when the run that it has started has ended.

    Args:
        source: Files and flags that make the configuration.
        now: End that run.
        as_json: Print JSON.
    """
    runs = reach_runs(source)
    experiment = runs.experiment()
    found = runs.kubeflow.schedules(experiment, runs.full_name("schedule")) if experiment else []
    retire(runs, found, now, partial(_tell, source, now))
    facts = {"evolution": runs.config.name, "removed": [str(one.recurring_run_id) for one in found]}
    if not found:
        answer(as_json, facts, f"{runs.config.name} has no schedule")
        return
    answer(as_json, facts, f"{runs.config.name} is not scheduled any more")


def _tell(source: ConfigSource, now: bool, run: Run) -> None:
    """What is waited for, on standard error."""
    ending = "is being ended" if now else "is in flight"
    how = "" if now else f"; end it with: cycleqd unschedule --now {source.flags}"
    errors.print(
        Text(
            f"the schedule starts nothing more; run {run.name} ({run.id}) {ending}, and the schedule is removed when it"
            f" has ended{how}. Interrupted, the schedule stays disabled until this command is repeated."
        )
    )
