"""The driver: runs step after step until the evolution is complete. May be killed and started again at any time.

It keeps no state. Where the evolution stands, S3 says; whether a run is in flight, its runner knows by the step's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cycleqd.errors import ConflictError, CycleQDError
from cycleqd.run.local.services import writable
from cycleqd.run.steps import Step, advanced, arguments, find_state, next_step, previous_step
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store


class Runner(Protocol):
    """Runs the pipelines of steps, somewhere."""

    def finished(self, step: Step) -> bool:
        """Whether a run of this step ended well."""

    def run(self, step: Step, arguments: Mapping[str, Any]) -> None:
        """Run a step to its end, or join the run of it that is in flight. Raises CycleQDError when it fails."""


class Watcher(Protocol):
    """Is told what happens."""

    def starts(self, step: Step, state: State | None) -> None:
        """A step begins, from this snapshot."""

    def ended(self, step: Step, state: State | None) -> None:
        """A step is done; this is the snapshot now."""

    def warns(self, sentence: str) -> None:
        """Something went wrong that does not stop the evolution."""


def drive(config: Config, store: Store, runner: Runner, watcher: Watcher) -> None:
    """Run the evolution to its end from wherever it is.

    First repeats the step before the current snapshot if its run did not end well: it may have been killed between
    moving HEAD and logging or cleaning, and repeating is free otherwise. Raises ConflictError when the evolution was
    started with another configuration.
    """
    config = adopt(store, config)
    state = find_state(store)
    before = previous_step(config, state)
    if before is not None and not runner.finished(before):
        _run(config, store, runner, watcher, before, state)
        state = find_state(store)
    while (step := next_step(config, store, state)) is not None:
        _run(config, store, runner, watcher, step, state)
        state = find_state(store)


def _run(config: Config, store: Store, runner: Runner, watcher: Watcher, step: Step, state: State | None) -> None:
    """Run a step and believe the records, not the run: some failures come after the work, and some go unreported."""
    watcher.starts(step, state)
    failure: CycleQDError | None = None
    try:
        runner.run(step, arguments(config, step, state))
    except CycleQDError as error:
        failure = error
    if not advanced(config, store, step):
        raise failure or ConflictError(
            f"the run of {step.name} reports success, but its records are not in {store.url('')}; look at its log"
        )
    if failure is not None:
        watcher.warns(f"the run of {step.name} failed after its work was done: {failure}")
    watcher.ended(step, find_state(store))


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
    """Hold the evolution for this process among those that share `place.folder`.

    Raises ConflictError naming the process that holds it. Drivers elsewhere need no lock: they meet in S3, where the
    second one adopts the first one's plan.
    """
    folder = writable(Path(config.place.folder).resolve() / "runs" / config.name)
    with (folder / "driver.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ConflictError(
                f"evolution '{config.name}' is being run by process {holder} on this machine;"
                " wait for it, or watch it with: cycleqd status"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
