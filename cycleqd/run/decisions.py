"""What a driver on a cluster does next: a pure function of where the evolution stands and of its runs.

A step's run has a name that follows from the step, so any driver, started at any time, finds it. A driver that is
killed between two calls loses nothing: the next one decides from the same two things. Records in S3 say what is done;
a run's state only says what is under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cycleqd.run.steps import Step

SUCCEEDED, FAILED, CANCELING = "SUCCEEDED", "FAILED", "CANCELING"
_GIVEN_UP = ("CANCELED", "SKIPPED")
ENDED = (SUCCEEDED, FAILED, *_GIVEN_UP)
LOST = (FAILED, CANCELING, *_GIVEN_UP)
"""The states of a run that ends, or has ended, without success."""


@dataclass(frozen=True)
class Run:
    """A run in the evolution's experiment. `name`: its step's, or any when a schedule started it. `reason`: KFP's."""

    id: str
    name: str
    state: str
    created_at: datetime
    reason: str = ""
    scheduled: bool = False

    @property
    def live(self) -> bool:
        """Whether it works or will. A run whose state KFP does not know yet will; one that is being cancelled won't."""
        return self.state not in LOST and self.state != SUCCEEDED


@dataclass(frozen=True)
class Standing:
    """Where the evolution is by S3: the step that is due, None when all is done, and the step before it.

    The step before has moved HEAD, but its logging and cleaning may not have ended.
    """

    due: Step | None
    before: Step | None


@dataclass(frozen=True)
class Start:
    """Start a run of the step."""

    step: Step


@dataclass(frozen=True)
class Wait:
    """Wait until the run has ended."""

    run: Run


@dataclass(frozen=True)
class Retry:
    """Run what failed, and what follows it, again in the same run."""

    run: Run


@dataclass(frozen=True)
class Cancel:
    """End the run: an older one does the same."""

    run: Run


@dataclass(frozen=True)
class Stop:
    """Go no further; the sentence says why and what to do."""

    sentence: str


@dataclass(frozen=True)
class Done:
    """The evolution is complete."""


Action = Start | Wait | Retry | Cancel | Stop | Done


def decide(standing: Standing, runs: Iterable[Run], ended_before: frozenset[str]) -> Action:
    """The next thing to do.

    `runs` may hold others than the two steps' and the schedule's; `standing` must have been the same before and after
    they were listed. `ended_before` are the ids of the runs that had been lost when this driver first looked: a failed
    one of these is retried in place, a cancelled one replaced, while one that is lost under the driver's eyes stops it.
    """
    known = sorted(runs, key=lambda run: (run.created_at, run.id))
    for run in known:
        if run.scheduled and run.live:
            return Wait(run)
    before = standing.before
    if before is not None:
        action = _unfinished(before, _of(before, known), ended_before)
        if standing.due is None and isinstance(action, Start):
            return Done()  # all records are there: nothing is worth a new run
        if action is not None:
            return action
    if standing.due is None:
        return Done()
    runs_due = _of(standing.due, known)
    return _unfinished(standing.due, runs_due, ended_before) or Stop(
        f"run {runs_due[-1].name} succeeded, but its records are not in S3: they were deleted, or the run used another"
        " bucket; restore them, or archive the run in Kubeflow Pipelines to have the step run again"
    )


def _of(step: Step, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.name == step.name and not run.scheduled]


def _unfinished(step: Step, runs: Sequence[Run], ended_before: frozenset[str]) -> Action | None:
    """What a step needs whose runs, oldest first, are these; None when one of them ended well."""
    live = [run for run in runs if run.live]
    if len(live) > 1:
        return Cancel(live[-1])
    if live:
        return Wait(live[0])
    if any(run.state == SUCCEEDED for run in runs):
        return None
    for run in runs:
        if run.state == CANCELING:
            return Wait(run)
    seen = [run for run in runs if run.id not in ended_before]
    if seen:
        return Stop(_lost(seen[-1]))
    failed = [run for run in runs if run.state == FAILED]
    return Retry(failed[-1]) if failed else Start(step)  # beside a failed run only its twin was ever cancelled


def _lost(run: Run) -> str:
    if run.state == FAILED:
        reason = f": {run.reason.rstrip('.')}" if run.reason else ""
        return (
            f"run {run.name} ({run.id}) failed{reason}; read `cycleqd logs {run.name}`, then go on with"
            f" `cycleqd retry {run.name}` or `cycleqd drive`"
        )
    return f"run {run.name} ({run.id}) was cancelled; `cycleqd drive` starts it anew"
