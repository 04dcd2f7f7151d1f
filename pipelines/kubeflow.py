"""Running a step on a Kubeflow Pipelines cluster.

A step's run has a name that follows from the evolution and the step, so a driver finds the run that is in flight and
joins it. A run's state is what counts: its task details keep failed attempts beside the later successes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cycleqd.config import Config
from cycleqd.errors import ConflictError, UnavailableError
from pipelines.definitions import write
from pipelines.steps import Step

if TYPE_CHECKING:
    from kfp import Client

POLL_SECONDS = 5.0
_RETRY_SECONDS = 120.0  # a retried run still reads FAILED for a while
_GOOD, _BAD, _GONE = "SUCCEEDED", "FAILED", ("CANCELED", "CANCELING", "SKIPPED")


class KubeflowRunner:
    """Runs steps as KFP runs in an experiment of the evolution's name. `follow`: see pipelines.local."""

    def __init__(self, config: Config, follow: Callable[[str, str], None], poll: float = POLL_SECONDS) -> None:
        self.config = config
        self.follow = follow
        self.poll = poll
        # KFP installed for one user knows no namespaces and refuses them; profiles are never in its own namespace
        namespace = None if config.place.namespace == "kubeflow" else config.place.namespace
        with _reported("reached"), contextlib.redirect_stdout(sys.stderr):
            self.client = _connect()
            experiment = self.client.create_experiment(config.name, namespace=namespace)
            self.experiment: str = experiment.experiment_id

    def finished(self, step: Step) -> bool:
        """Whether a run of this step ended well."""
        run = self._find(step)
        return run is not None and run.state == _GOOD

    def run(self, step: Step, arguments: Mapping[str, Any]) -> None:
        """Submit or join the step's run and wait for it; a failed one is retried `place.retries` times.

        Raises ConflictError when somebody cancels it, UnavailableError when it fails for good or KFP does not answer.
        """
        run = self._find(step) or self._submit(step, arguments)
        for attempt in range(self.config.place.retries + 1):
            state = self._wait(run.run_id)
            if state == _GOOD:
                return
            if state in _GONE:
                raise ConflictError(f"run '{run.display_name}' ({run.run_id}) was cancelled; start again to go on")
            if attempt < self.config.place.retries:
                self._retry(run.run_id)
        raise UnavailableError(
            f"run '{run.display_name}' ({run.run_id}) failed {self.config.place.retries + 1} times;"
            f" look at its tasks in the experiment '{self.config.name}' of Kubeflow Pipelines"
        )

    def _name(self, step: Step) -> str:
        return f"{self.config.name}-{step.name}"

    def _find(self, step: Step) -> Any | None:
        """The step's oldest run that was not cancelled."""
        wanted = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": self._name(step)}]}
        with _reported("asked for runs"):
            answer = self.client.list_runs(
                experiment_id=self.experiment, sort_by="created_at", page_size=100, filter=json.dumps(wanted)
            )
        return next((run for run in answer.runs or [] if run.state not in _GONE), None)

    def _submit(self, step: Step, arguments: Mapping[str, Any]) -> Any:
        """Create the run. Of two drivers that do so at once the later one withdraws its run and joins the other's."""
        with tempfile.TemporaryDirectory() as folder, _reported("given a run"):
            package = Path(folder) / "pipeline.yaml"
            write(self.config, step.kind, step.count, package)
            made = self.client.run_pipeline(
                self.experiment, self._name(step), str(package), params=dict(arguments), enable_caching=False
            )
        first = self._find(step) or made
        if first.run_id != made.run_id:
            with _reported("told to end a run"):
                self.client.terminate_run(made.run_id)
        return first

    def _wait(self, run_id: str, seconds: float | None = None, leaving: str = "") -> str:
        """Poll until the run has ended, or has left the state `leaving`, or the time is over; its state."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            with _reported("asked for a run"):
                state = str(self.client.get_run(run_id).state)
            self.follow(run_id, state)
            over = state != leaving if leaving else state in (_GOOD, _BAD, *_GONE)
            if over or (deadline is not None and time.monotonic() > deadline):
                return state
            time.sleep(self.poll)

    def _retry(self, run_id: str) -> None:
        """Run the failed branch and what follows it again, in the same run; the SDK has no method for that."""
        with _reported("asked to retry a run"):
            self.client._run_api.run_service_retry_run(run_id=run_id)
        self._wait(run_id, _RETRY_SECONDS, leaving=_BAD)


def _connect() -> Client:
    """The client that the environment describes: KF_PIPELINES_ENDPOINT, or the cluster of the kubeconfig."""
    from kfp import Client

    return Client()


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn the client's failures, after urllib3's own bounded retries, into one sentence."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, HTTPError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise UnavailableError(
            f"Kubeflow Pipelines cannot be {what} ({text});"
            " check KF_PIPELINES_ENDPOINT, or that the kubeconfig's cluster is up"
        ) from error
