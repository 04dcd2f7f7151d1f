"""An evolution's runs on Kubeflow Pipelines, as the driver wants them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cycleqd.errors import ConflictError, InvalidInputError, UnavailableError
from cycleqd.run.decisions import CANCELED, CANCELING, ENDED, FAILED, Run
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.compiled import Changes
from cycleqd.run.kubeflow.liveness import Liveness
from cycleqd.run.kubeflow.refusals import MissingError
from cycleqd.run.kubeflow.repeats import Ledger
from cycleqd.run.kubeflow.waiting import Waits
from cycleqd.run.steps import Step, arguments, find_state
from cycleqd.search.config import Config
from cycleqd.storage.objects import Store
from pipelines.definitions import Kind, version_name, write

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

POLL_SECONDS = 5.0
RETRY_SECONDS = 120.0  # a retried run still reads FAILED for a while
STUCK_SECONDS = 300.0
"""A retried run without a pod for so long is stuck: between two pods lie seconds, or minutes on a busy cluster."""
GONE_SECONDS = 30.0  # between two looks for the workflow of a run that is watched
_EVENTS = {"SUCCEEDED": "done", "RUNNING": "started"}
_NEWEST = 20  # a live run of the schedule is among the newest runs: it runs one at a time

Follow = Callable[[str, str], None]
"""Called with the name of a task and "started" or "done", again with every look."""


class Runs:
    """The evolution's experiment. A run's name is the evolution's and its step's."""

    def __init__(self, config: Config, kubeflow: Kubeflow) -> None:
        self.config = config
        self.kubeflow = kubeflow
        self._experiment: str | None = None
        self._ended_by_hand: set[str] = set()
        self._versions: dict[tuple[Kind, int], tuple[str, str]] = {}

    def experiment(self) -> str | None:
        """The experiment's id, None before anything was submitted."""
        if self._experiment is None:
            self._experiment = self.kubeflow.find_experiment(self.config.name)
        return self._experiment

    def full_name(self, step: str) -> str:
        """A step's run as Kubeflow Pipelines names it.

        Args:
            step: The step's name, or a pipeline's kind.
        """
        return f"{self.config.name}-{step}"

    def runs(self, names: Iterable[str]) -> list[Run]:
        """All runs of these steps, and the live ones of the schedule.

        Args:
            names: Names of steps.
        """
        experiment = self.experiment()
        if experiment is None:
            return []
        found = [self.run(one) for name in names for one in self.kubeflow.runs(experiment, self.full_name(name))]
        newest = [self.run(one) for one in islice(self.kubeflow.runs(experiment), _NEWEST)]
        return found + [run for run in newest if run.scheduled and run.live]

    def all(self, limit: int = 0) -> list[tuple[Run, V2beta1Run]]:
        """The newest runs of the experiment, as we and as KFP describe them.

        Args:
            limit: So many; 0 is all.
        """
        experiment = self.experiment()
        newest = self.kubeflow.runs(experiment) if experiment else ()
        return [(self.run(one), one) for one in islice(newest, limit or None)]

    def resolve(self, name: str) -> Run:
        """The run that a user names.

        Args:
            name: A run's id or its step's name, for which the newest run is meant.

        Raises:
            InvalidInputError: There is none.
        """
        experiment = self.experiment()
        if experiment is not None:
            step = name.removeprefix(f"{self.config.name}-")
            for one in self.kubeflow.runs(experiment, self.full_name(step)):
                return self.run(one)
            try:
                found = self.kubeflow.get_run(name)
                if found.experiment_id == experiment:
                    return self.run(found)
            except ConflictError:
                pass
        raise InvalidInputError(
            f"evolution '{self.config.name}' has no run '{name}' at {self.kubeflow.where}; `cycleqd runs` lists them"
        )

    def run(self, one: V2beta1Run) -> Run:
        """A run as KFP describes it, in our terms. A run that was terminated ends as FAILED there: here it is CANCELED.

        Args:
            one: As KFP describes it.
        """
        name, state = str(one.display_name), str(one.state or "RUNTIME_STATE_UNSPECIFIED")
        reason = one.error.message if one.error is not None else ""
        history = [str(status.state) for status in one.state_history or []]
        earlier = [past for past in history if past != state]
        if state == CANCELING:
            self._ended_by_hand.add(str(one.run_id))
        elif state not in ENDED:
            self._ended_by_hand.discard(str(one.run_id))
        elif state == FAILED and (str(one.run_id) in self._ended_by_hand or earlier[-1:] == [CANCELING]):
            state = CANCELED
        return Run(
            id=str(one.run_id),
            name=name.removeprefix(f"{self.config.name}-"),
            state=state,
            created_at=one.created_at,
            reason=" ".join((reason or "").split())[:300],
            scheduled=bool(one.recurring_run_id),
            ended=one.finished_at.isoformat() if one.finished_at else "",
            retried=state not in ENDED and FAILED in history,
        )

    def retry(self, run: Run) -> None:
        """Run what failed again; return once the run works.

        Right after the call the old state is still read.

        Args:
            run: One that failed.

        Raises:
            ConflictError: It has not failed, or still reads FAILED after a while.
        """
        if run.state == CANCELED:
            raise ConflictError(f"run {run.name} ({run.id}) was cancelled; `cycleqd drive` or submit starts a new one")
        if run.state != FAILED:
            raise ConflictError(f"run {run.name} ({run.id}) is {run.state}; only one that FAILED can be retried")
        self._ended_by_hand.discard(run.id)
        try:
            self.kubeflow.retry(run.id)
        except ConflictError:
            if str(self.kubeflow.get_run(run.id).state) in (FAILED, CANCELED):
                raise  # else another process was faster
        deadline = time.monotonic() + RETRY_SECONDS
        while self.kubeflow.get_run(run.id).state == FAILED:
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"run {run.name} ({run.id}) is still FAILED {RETRY_SECONDS:.0f} s after its retry was asked for;"
                    f" look at {self.kubeflow.url(run.id)}"
                )
            time.sleep(POLL_SECONDS)

    def cancel(self, run: Run) -> None:
        """Ask for the run's end; one that has ended, or is ending, is no error.

        Args:
            run: In any state.
        """
        try:
            self.kubeflow.terminate(run.id)
        except (ConflictError, UnavailableError):
            if str(self.kubeflow.get_run(run.id).state) not in (*ENDED, CANCELING):
                raise

    def looks(self, run: Run) -> Iterator[V2beta1Run]:
        """The run as it is now and with every poll, until it has ended.

        Args:
            run: In any state.

        Raises:
            ConflictError: It was deleted.
        """
        while True:
            try:
                found = self.kubeflow.get_run(run.id)
            except MissingError as error:
                raise ConflictError(
                    f"run {run.name} ({run.id}) was deleted while it was watched; `cycleqd drive` starts it again"
                ) from error
            yield found
            if str(found.state) in ENDED:
                return
            time.sleep(POLL_SECONDS)

    def version(self, kind: Kind, count: int) -> tuple[str, str]:
        """Ids of the pipeline of a kind and of the version that is what is compiled now.

        Args:
            kind: The pipeline's.
            count: Generations that a run covers.
        """
        if (kind, count) not in self._versions:
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / "pipeline.yaml"
                write(self.config, kind, count, package)
                found = self.kubeflow.version_of(self.full_name(kind), version_name(package), package)
            self._versions[kind, count] = found
        return self._versions[kind, count]

    def body(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What a run and a schedule hold besides their pipeline.

        Args:
            parameters: The pipeline's.
        """
        import kfp_server_api as api

        return {
            "runtime_config": api.V2beta1RuntimeConfig(parameters=dict(parameters)),
            "service_account": self.config.place.service_account or None,
        }


class Steps(Runs):
    """The runs with what is needed to start and repeat some: S3, and the models and data that are on this machine."""

    def __init__(
        self,
        config: Config,
        kubeflow: Kubeflow,
        store: Store,
        upload: Callable[[], Config],
        follow: Follow = lambda task, event: None,
        warned: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """`upload` brings what seeding reads to S3, and is the configuration that says so."""
        super().__init__(config, kubeflow)
        self.store = store
        self.upload = upload
        self.follow = follow
        self.ledger = Ledger(store)
        self.liveness = Liveness(kubeflow, config.place, warned)
        self.waits = Waits(config.place)
        self.changes = Changes(config, store, kubeflow, self.version)
        self._stuck, self._corrected = set[str](), set[str]()

    def runs(self, names: Iterable[str]) -> list[Run]:
        """As Runs does, with what is recorded of them, and whether one is cancelled, stuck or outdated.

        Args:
            names: Of steps.
        """
        found = [self._judged(run) for run in super().runs(sorted(names))]
        return [run for run in found if run.scheduled] + self.ledger.with_repeats(
            run for run in found if not run.scheduled
        )

    def _judged(self, run: Run) -> Run:
        if run.state not in ENDED:
            return replace(run, stuck=run.id in self._stuck or self.liveness.gone(run.id))
        if run.state != FAILED or run.scheduled:
            return run
        if self.liveness.terminated(run.id):
            return replace(run, state=CANCELED)
        return replace(run, outdated=self.changes.of(run))

    def start(self, step: Step) -> Run:
        """Start a run of the step.

        Args:
            step: One that is due.
        """
        source = self.version(step.kind, step.count)
        state = find_state(self.store)
        seen = self.upload() if step.kind == "seeding" and state is None else self.config
        self._experiment = self.kubeflow.experiment(self.config.name)
        body = self.body(arguments(seen, self.store, step, state))
        return self.run(self.kubeflow.create_run(self._experiment, self.full_name(step.name), source, body))

    def wait(self, run: Run) -> None:
        """Poll until the run has ended, or is stuck; `follow` is called with its tasks at every poll.

        Any run is stuck whose workflow is gone. One that Kubeflow retried, one of a schedule, and one that is being
        cancelled is without a pod for minutes; any other then waits for something: a quota, a queue.

        Args:
            run: One that is in flight.
        """
        quiet: float | None = None
        looked = time.monotonic()
        for found in self.looks(run):
            if time.monotonic() - looked >= GONE_SECONDS:
                looked = time.monotonic()
                if self.liveness.gone(run.id):
                    self._stuck.add(run.id)
                    return
            for task in (found.run_details.task_details if found.run_details else None) or []:
                if task.state in _EVENTS:
                    self.follow(str(task.display_name), _EVENTS[task.state])
            for sentence in self.waits.news(run.id):
                self.liveness.warned(sentence)
            now = self.run(found)
            may_be = run.retried or now.retried or run.scheduled or now.state == CANCELING
            if now.state in ENDED or not may_be or not self.liveness.idle(found):
                quiet = None
            elif quiet is None:
                quiet = time.monotonic()
            elif time.monotonic() - quiet >= STUCK_SECONDS:
                self._stuck.add(run.id)
                return

    def retry(self, run: Run) -> None:
        """As Runs does, if this driver is the one that repeats it.

        Args:
            run: A failed one.
        """
        if self.ledger.claim(run):
            super().retry(run)

    def replace(self, run: Run) -> None:
        """Archive a run, and end what there may be of one that is stuck.

        Args:
            run: One that is stuck, or has ended and is outdated.

        Raises:
            ConflictError: This driver has replaced an outdated run of the step already: another one is at work.
        """
        if run.outdated and run.name in self._corrected:
            raise ConflictError(
                f"run {run.name} ({run.id}) was compiled from other settings ({run.outdated}), and so was the one that"
                " this command replaced: another driver works on this evolution; stop one of the two"
            )
        if not run.scheduled and not self.ledger.give_up(run):
            return
        self.kubeflow.archive(run.id)
        if run.outdated:
            self._corrected.add(run.name)
            return
        with contextlib.suppress(ConflictError, UnavailableError):  # it is out of the way, whatever becomes of it
            self.kubeflow.terminate(run.id)
