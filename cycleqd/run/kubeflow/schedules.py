"""Ending recurring runs. One that is deleted takes the workflow along that works for it: it is disabled first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cycleqd.run.decisions import ENDED, Run
from cycleqd.run.kubeflow import runs as polling
from cycleqd.run.kubeflow.liveness import Liveness
from cycleqd.run.kubeflow.runs import Runs

if TYPE_CHECKING:
    from kfp_server_api import V2beta1RecurringRun

_NEWEST = 20  # they run one at a time


def retire(runs: Runs, schedules: Sequence[V2beta1RecurringRun], now: bool, waits_for: Callable[[Run], None]) -> None:
    """Disable recurring runs, and delete them when nothing of them is in flight. May be interrupted and repeated.

    A run whose workflow is gone is not waited for: nothing would ever end it.

    Args:
        runs: The evolution's.
        schedules: Of the evolution.
        now: End what is in flight.
        waits_for: Called once with every run that is waited for.
    """
    ids = {str(one.recurring_run_id) for one in schedules}
    for schedule in ids:
        runs.kubeflow.disable_schedule(schedule)
    told, liveness = set[str](), Liveness(runs.kubeflow, runs.config.place)
    while in_flight := _in_flight(runs, ids, liveness):
        for run in in_flight:
            if run.id not in told:
                waits_for(run)
                if now and run.live:
                    runs.cancel(run)
        told |= {run.id for run in in_flight}
        time.sleep(polling.POLL_SECONDS)
    for schedule in ids:
        runs.kubeflow.delete_schedule(schedule)


def _in_flight(runs: Runs, schedules: set[str], liveness: Liveness) -> list[Run]:
    newest = runs.all(_NEWEST) if schedules else []
    found = [run for run, one in newest if str(one.recurring_run_id) in schedules and run.state not in ENDED]
    return [run for run in found if not liveness.gone(run.id)]
