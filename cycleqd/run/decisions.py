"""What a driver does next: a pure function of the evolution's records and its runs.

A step's run has a name that follows from the step, so any driver, started at any time, finds it. A driver that is
killed between two calls loses nothing: the next one decides from the same two things. Records in S3 say what is done,
why a task failed and how often its run was repeated; a run's state only says what is under way. This is the one level
at which work is repeated: a task has one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cycleqd.errors import ConflictError
from cycleqd.run.steps import Step
from cycleqd.storage.failures import Failure

RUNNING, SUCCEEDED, FAILED = "RUNNING", "SUCCEEDED", "FAILED"
CANCELING, CANCELED, SKIPPED = "CANCELING", "CANCELED", "SKIPPED"
ENDED = (SUCCEEDED, FAILED, CANCELED, SKIPPED)
GIVEN_UP = (CANCELING, CANCELED, SKIPPED)
"""The states of a run that was cancelled, or is being cancelled."""
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds between a failure and its repetition: the first, doubled each time, at most the second."""


@dataclass(frozen=True)
class Run:
    """A run in the evolution's experiment. `name`: its step's, or any when a schedule started it. `reason`: KFP's.

    `ended`: when, as KFP writes it. `failure`: what its failed task recorded. `retries`: how often it had been repeated
    before it failed as it has, by drivers; `claimed`: a driver was about to repeat it once more. `retried`: it works
    again after a failure. `stuck`: it has no workflow any more, or has had no pod for so long that it never will.
    `outdated`: why it is replaced when it has ended, though it could be retried: what of that it was compiled from has
    changed; "" for nothing.
    """

    id: str
    name: str
    state: str
    created_at: datetime
    reason: str = ""
    scheduled: bool = False
    ended: str = ""
    failure: Failure | None = None
    retries: int = 0
    claimed: bool = False
    retried: bool = False
    stuck: bool = False
    outdated: str = ""

    @property
    def live(self) -> bool:
        """Whether it works or will. A run whose state KFP does not know yet will; one that is being cancelled won't."""
        return self.state not in ENDED and self.state != CANCELING

    @property
    def why(self) -> str:
        """Why it failed, in its task's words if it recorded any, else in KFP's."""
        return (str(self.failure) if self.failure else self.reason).rstrip(".")


@dataclass(frozen=True)
class Position:
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
    """Run what failed, and what follows it, again in the same run, after a pause (seconds) if nothing has changed."""

    run: Run
    pause: float


@dataclass(frozen=True)
class Cancel:
    """End the run: an older one does the same."""

    run: Run


@dataclass(frozen=True)
class Replace:
    """Archive a run that is stuck or outdated, so that a new one of its step takes up what it has finished."""

    run: Run


@dataclass(frozen=True)
class Halt:
    """Go no further; the sentence says why and what to do. `kind`: the error to end with."""

    sentence: str
    kind: str = ConflictError.__name__


@dataclass(frozen=True)
class Done:
    """The evolution is complete."""


Action = Start | Wait | Retry | Cancel | Replace | Halt | Done


def decide(position: Position, runs: Iterable[Run], ended_before: frozenset[str], retries: int) -> Action:
    """The next thing to do.

    A failed run is repeated, at most `retries` times, unless its task refused. One that is outdated is replaced.

    Args:
        position: The same before and after the runs were listed.
        runs: Those of the position's two steps and the schedule's; others are ignored.
        ended_before: Ids of the runs that somebody had ended when this driver first looked: they are replaced, while
            one that is cancelled under the driver's eyes stops it.
        retries: How often a failed run is repeated.
    """
    known = sorted(runs, key=lambda run: (run.created_at, run.id))
    for run in known:
        if run.scheduled and run.live:
            return Replace(run) if run.stuck else Wait(run)
    before = position.before
    if before is not None:
        action = _unfinished(before, _of(before, known), ended_before, retries)
        if position.due is None and isinstance(action, Start):
            return Done()  # all records are there: nothing is worth a new run
        if action is not None:
            return action
    if position.due is None:
        return Done()
    runs_due = _of(position.due, known)
    if (action := _unfinished(position.due, runs_due, ended_before, retries)) is not None:
        return action
    last = runs_due[-1]
    return (
        Replace(last)
        if last.outdated
        else Halt(
            f"run {last.name} succeeded, but its records are not in S3: they were deleted, or the run used another"
            " bucket; restore them, or have the step run again: cycleqd drive --fresh"
        )
    )


def _of(step: Step, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.name == step.name and not run.scheduled]


def _unfinished(step: Step, runs: Sequence[Run], ended_before: frozenset[str], retries: int) -> Action | None:
    """What a step needs whose runs, oldest first, are these; None when one of them ended well."""
    for run in runs:
        if run.stuck:
            return Replace(run)
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
    failed = [run for run in runs if run.state == FAILED]
    if failed:
        return _again(failed[-1], retries)  # others were cancelled as duplicates of it
    gone = [run for run in runs if run.id not in ended_before]
    if gone:
        return Halt(f"run {gone[-1].name} ({gone[-1].id}) was cancelled; `cycleqd drive` starts it again")
    return Start(step)


def _again(run: Run, retries: int) -> Retry | Replace | Halt:
    """What becomes of a run that failed."""
    if run.outdated:
        return Replace(run)
    if run.failure is not None and run.failure.refusal:
        return Halt(
            f"run {run.name} ({run.id}) failed and is not repeated, which could not help: {run.why}; correct that"
            " (a corrected image, profile or configuration makes a new run when you drive on; for anything else"
            f" `cycleqd retry {run.name}`, or drive with --fresh for a new run)",
            run.failure.kind,
        )
    if run.retries < retries:
        return Retry(run, min(FIRST_PAUSE * 2.0**run.retries, LONGEST_PAUSE))
    times = f" {run.retries + 1} times" if run.retries else ""
    return Halt(
        f"run {run.name} ({run.id}) failed{times}{f': {run.why}' if run.why else ''}; read `cycleqd logs {run.name}`,"
        f" then go on with `cycleqd retry {run.name}`, or with a new run: cycleqd drive --fresh"
    )
