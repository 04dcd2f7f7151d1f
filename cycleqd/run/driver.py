"""The driver: decides what is due and has a runner do it, until the evolution is complete. May be killed at any time.

It keeps no state that matters: records in S3 show how far the evolution is, its runner knows what is in flight. See
cycleqd.run.decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from cycleqd.errors import ConflictError, UnavailableError, named
from cycleqd.run.decisions import (
    ENDED,
    FAILED,
    GIVEN_UP,
    Action,
    Cancel,
    Done,
    Halt,
    Position,
    Replace,
    Retry,
    Run,
    Start,
    Wait,
    decide,
)
from cycleqd.run.steps import Step, finalising_step, find_state, next_step, previous_step
from cycleqd.search.config import Config
from cycleqd.storage.objects import Store

OUTAGE_SECONDS = 300.0
FAILED_TASK = "Failed"
FRESH = "--fresh"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


@dataclass(frozen=True)
class TaskLog:
    """The log of one task of a run.

    `name`: its pod's or its file's. `task`: the pipeline's name for it. `child`: the child that it works on, if it is
    one. `phase`: Running, Succeeded, Failed; in a cluster also Pending or Unknown. `started`: when, ISO 8601. `read`:
    its last lines, as many as are asked for. `ended`: how a pod that failed ended, as Kubernetes says it.
    """

    name: str
    task: str
    child: str
    phase: str
    started: str
    read: Callable[[int], str]
    ended: str = ""

    @property
    def live(self) -> bool:
        """Whether the task works or will: one whose pod waits for a node, its image or a GPU counts."""
        return self.phase not in ("Succeeded", FAILED_TASK)


class Runner(Protocol):
    """Runs steps somewhere: processes or containers of this machine, or a cluster.

    Raises UnavailableError when it does not answer, other CycleQDErrors for what it refuses. One that repeats nothing
    raises in `wait` what a run failed of; it is never asked to retry or replace.
    """

    def runs(self, names: Iterable[str]) -> list[Run]:
        """All runs of these steps that are not archived, and the live ones of the schedule.

        Args:
            names: Names of steps.
        """

    def start(self, step: Step) -> Run:
        """Start a run of the step. After an UnavailableError it may have been started all the same.

        Args:
            step: One that is due.
        """

    def wait(self, run: Run) -> None:
        """Return when the run has ended, or is stuck. Raises ConflictError when it is deleted.

        Args:
            run: One that is in flight.
        """

    def cancel(self, run: Run) -> None:
        """Ask for its end; a run that has ended already is no error.

        Args:
            run: In any state.
        """

    def retry(self, run: Run) -> None:
        """Count it, then return when the run works again. Does nothing when another driver was faster.

        Args:
            run: One that failed.
        """
        raise ConflictError(f"run {run.name} ({run.id}) cannot be repeated where it runs; start it again")

    def replace(self, run: Run) -> None:
        """Archive a run that is stuck or outdated. Does nothing when another driver was faster.

        Args:
            run: One that is stuck, or has ended and is outdated.
        """
        raise ConflictError(f"run {run.name} ({run.id}) cannot be replaced where it runs; start it again")


def position(config: Config, store: Store) -> Position:
    """Where the evolution is, by HEAD and what finalising has recorded.

    Args:
        config: The evolution's configuration.
        store: The evolution.
    """
    state = find_state(store)
    due = next_step(config, store, state)
    return Position(due, finalising_step(store) if due is None else previous_step(config, state))


@dataclass
class Driver:
    """Decides and acts. `position` reads S3; `announce` is called with every action before it is done.

    `retries`: how often a failed run is repeated. `outage`: seconds of pauses for which errors of the kind `waits_for`
    are waited out, one after another. `fresh`: what has ended without finishing its step when the driver first looks is
    replaced, not retried.
    """

    runner: Runner
    position: Callable[[], Position]
    retries: int = 0
    announce: Callable[[Action, Position], None] = lambda action, position: None
    warned: Callable[[str], None] = lambda sentence: None
    sleep: Callable[[float], None] = time.sleep
    outage: float = OUTAGE_SECONDS
    waits_for: type[UnavailableError] = UnavailableError
    fresh: bool = False
    _given_up: set[str] = field(default_factory=set)
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
                action, position = self.next()
                self.announce(action, position)
                if isinstance(action, Done):
                    return
                if isinstance(action, Retry):
                    self.sleep(action.pause)
                    if self.next()[0] != action:  # another driver did it meanwhile
                        continue
                self.act(action)
                if not isinstance(action, Start):  # a run that begins may still meet the outage
                    pause, quiet = _FIRST_PAUSE, 0.0
            except self.waits_for as error:
                if quiet >= self.outage:
                    raise
                self.warned(f"{error}; trying again in {pause:.0f} s")
                self.sleep(pause)
                pause, quiet = min(2 * pause, _LONGEST_PAUSE), quiet + pause

    def submit(self) -> tuple[Action, Run | None]:
        """Do the one thing that is due without waiting for it: the action, and the run that is now under way."""
        while True:
            action, position = self.next()
            self.announce(action, position)
            if isinstance(action, Wait):
                return action, action.run
            run = self.act(action)
            if not isinstance(action, Cancel | Replace):
                return action, run

    def next(self) -> tuple[Action, Position]:
        """What is to be done, from a look at the runs during which S3 did not change."""
        position = self.position()
        while True:
            names = {step.name for step in (position.before, position.due) if step is not None}
            runs = self.runner.runs(sorted(names))
            fresh = names - self._looked_for
            self._ended_before |= {run.id for run in runs if run.state in GIVEN_UP and run.name in fresh}
            self._ended_before -= {run.id for run in runs if run.live}  # retried: it is watched from here on
            self._looked_for |= names
            if self.fresh:
                self._give_up(position, runs)
            runs = [replace(run, outdated=FRESH) if run.id in self._given_up else run for run in runs]
            again = self.position()
            if again == position:
                return decide(position, runs, frozenset(self._ended_before), self.retries), position
            position = again

    def _give_up(self, position: Position, runs: Iterable[Run]) -> None:
        """Have runs replaced that have ended without finishing their step, once. Refuses where one is in flight."""
        due = position.due.name if position.due else ""
        for run in runs:
            if run.live and not run.stuck:
                raise ConflictError(
                    f"run {run.name} ({run.id}) is in flight, and --fresh replaces runs that have ended; end it with"
                    f" `cycleqd cancel {run.name}`, or leave --fresh out"
                )
            if run.state == FAILED or (run.state in ENDED and run.name == due):
                self._given_up.add(run.id)
        self.fresh = False

    def act(self, action: Action) -> Run | None:
        """Do it; the run that is under way then, if one is.

        Args:
            action: What `next` decided.

        Raises:
            CycleQDError: The action is a Halt: the error that it names.
        """
        match action:
            case Start(step):
                return self.runner.start(step)
            case Wait(run):
                self.runner.wait(run)
                return run
            case Retry(run):
                self.runner.retry(run)
                return run
            case Cancel(run):
                self._ended_before.add(run.id)
                self.runner.cancel(run)
            case Replace(run):
                self.runner.replace(run)
            case Halt(sentence, kind):
                raise (named(kind) or ConflictError)(sentence)
        return None
