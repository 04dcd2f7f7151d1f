"""Doing what is decided, on whatever runs the steps. Keeps no state that matters: see cycleqd.run.decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cycleqd.errors import ConflictError, UnavailableError, named
from cycleqd.run.decisions import (
    GIVEN_UP,
    Action,
    Cancel,
    Done,
    Replace,
    Retry,
    Run,
    Standing,
    Start,
    Stop,
    Wait,
    decide,
)
from cycleqd.run.steps import Step

OUTAGE_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Cluster(Protocol):
    """Where runs are. Raises UnavailableError when it does not answer, other CycleQDErrors for what it refuses."""

    def runs(self, names: Iterable[str]) -> list[Run]:
        """All runs of these steps that are not archived, and the live ones of the schedule."""

    def start(self, step: Step) -> Run:
        """Start a run of the step. After an UnavailableError it may have been started all the same."""

    def wait(self, run: Run) -> None:
        """Return when the run has ended, or is stuck. Raises ConflictError when it is deleted."""

    def retry(self, run: Run) -> None:
        """Count it, then return when the run works again. Does nothing when another driver was faster."""

    def cancel(self, run: Run) -> None:
        """Ask for its end; a run that has ended already is no error."""

    def replace(self, run: Run) -> None:
        """Archive a run that is stuck. Does nothing when another driver was faster."""


@dataclass
class Conductor:
    """Decides and acts. `standing` reads S3; `told` hears of every action before it is done.

    `retries`: how often a failed run is repeated.
    """

    cluster: Cluster
    standing: Callable[[], Standing]
    retries: int = 0
    told: Callable[[Action, Standing], None] = lambda action, standing: None
    warned: Callable[[str], None] = lambda sentence: None
    sleep: Callable[[float], None] = time.sleep
    outage: float = OUTAGE_SECONDS
    _ended_before: set[str] = field(default_factory=set)
    _looked_for: set[str] = field(default_factory=set)

    def drive(self) -> None:
        """Act until all is done.

        Raises what a failed task refused, ConflictError when a run is lost otherwise, UnavailableError when an outage
        lasts. An action that an outage interrupts is decided anew: whether it took effect, the next look shows.
        """
        pause, quiet = _FIRST_PAUSE, 0.0
        while True:
            try:
                action, standing = self.next()
                self.told(action, standing)
                if isinstance(action, Done):
                    return
                if isinstance(action, Retry):
                    self.sleep(action.pause)
                    if self.next()[0] != action:  # somebody did it meanwhile
                        continue
                self.act(action)
                pause, quiet = _FIRST_PAUSE, 0.0
            except UnavailableError as error:
                if quiet >= self.outage:
                    raise
                self.warned(f"{error}; trying again in {pause:.0f} s")
                self.sleep(pause)
                pause, quiet = min(2 * pause, _LONGEST_PAUSE), quiet + pause

    def submit(self) -> tuple[Action, Run | None]:
        """Do the one thing that is due without waiting for it: the action, and the run that is now under way."""
        while True:
            action, standing = self.next()
            self.told(action, standing)
            if isinstance(action, Wait):
                return action, action.run
            run = self.act(action)
            if not isinstance(action, Cancel | Replace):
                return action, run

    def next(self) -> tuple[Action, Standing]:
        """What is to be done, from a look at the runs during which S3 did not change."""
        standing = self.standing()
        while True:
            names = {step.name for step in (standing.before, standing.due) if step is not None}
            runs = self.cluster.runs(sorted(names))
            fresh = names - self._looked_for
            self._ended_before |= {run.id for run in runs if run.state in GIVEN_UP and run.name in fresh}
            self._ended_before -= {run.id for run in runs if run.live}  # retried: it is watched from here on
            self._looked_for |= names
            again = self.standing()
            if again == standing:
                return decide(standing, runs, frozenset(self._ended_before), self.retries), standing
            standing = again

    def act(self, action: Action) -> Run | None:
        """Do it. Raises the error of a Stop."""
        match action:
            case Start(step):
                return self.cluster.start(step)
            case Wait(run):
                self.cluster.wait(run)
                return run
            case Retry(run):
                self.cluster.retry(run)
                return run
            case Cancel(run):
                self._ended_before.add(run.id)
                self.cluster.cancel(run)
            case Replace(run):
                self.cluster.replace(run)
            case Stop(sentence, kind):
                raise (named(kind) or ConflictError)(sentence)
        return None
