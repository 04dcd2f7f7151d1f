"""Whether anything of a run works: retried, or when its workflow was taken, it can read RUNNING for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cycleqd.errors import CycleQDError, InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.endpoint import given
from cycleqd.run.kubeflow.pods import RUN_LABEL, ForbiddenError, Kubernetes
from cycleqd.search.place import Place

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_AT_WORK = ("PENDING", "RUNNING")
_AGAIN = 60.0  # seconds until Kubernetes is asked again for workflows that it did not show


class Liveness:
    """Asks for a run's workflow and pods.

    Where pods may not be listed, which is warned of once, KFP's list of tasks must do. Where workflows may not be
    listed, none is found to be gone; nor on a cluster that nothing shows to be this server's: a kubeconfig may lead to
    another one than an endpoint.
    """

    def __init__(self, kubeflow: Kubeflow, place: Place, warned: Callable[[str], None] = lambda sentence: None) -> None:
        self.kubeflow = kubeflow
        self.namespace = place.namespace
        self.warned = warned
        self._same = given(place) is None
        self._kubernetes: Kubernetes | None = None
        self._blind = False
        self._hidden_until = 0.0

    def gone(self, run_id: str) -> bool:
        """Whether Kubernetes has no workflow of a run that KFP believes in flight: nothing will ever move it.

        KFP makes the workflow before the run, and it is cleaned up long after KFP knows its end.

        Args:
            run_id: The run's id.
        """
        return self._workflows(run_id) == []

    def terminated(self, run_id: str) -> bool:
        """Whether the run's workflow shows that somebody ended it: KFP calls such a run FAILED.

        Args:
            run_id: The run's id.
        """
        return any(one.get("spec", {}).get("activeDeadlineSeconds") == 0 for one in self._workflows(run_id) or [])

    def _workflows(self, run_id: str) -> list[Mapping[str, Any]] | None:
        """None where it cannot be told."""
        if time.monotonic() < self._hidden_until:
            return None
        try:
            self._kubernetes = self._kubernetes or Kubernetes()
            found = self._kubernetes.workflows(self.namespace, run_id)
            self._same = self._same or bool(found) or self._knows_some(self._kubernetes)
            return found if self._same else None
        except (UnavailableError, InvalidInputError):
            self._hidden_until = time.monotonic() + _AGAIN
            return None

    def _knows_some(self, kubernetes: Kubernetes) -> bool:
        """Whether a workflow of the namespace is of a run that the server knows."""
        for one in kubernetes.workflows(self.namespace):
            with contextlib.suppress(CycleQDError):
                self.kubeflow.get_run(one["metadata"]["labels"][RUN_LABEL])
                return True
        return False

    def idle(self, run: V2beta1Run) -> bool:
        """Whether the run has no pod that works or waits, KFP's own included. False when Kubernetes does not answer.

        Args:
            run: With the details of its tasks.
        """
        if not self._blind:
            try:
                self._kubernetes = self._kubernetes or Kubernetes()
            except UnavailableError as error:
                self._cannot(error)
        if self._kubernetes is not None and not self._blind:
            try:
                pods = self._kubernetes.pods(str(run.run_id), self.namespace, drivers=True)
                return not any(pod.live for pod in pods)
            except (ForbiddenError, InvalidInputError) as error:
                self._cannot(error)
            except UnavailableError:
                return False
        return not any(
            task.state in _AT_WORK and not task.child_tasks  # a DAG reads RUNNING as long as its run does
            for task in (run.run_details.task_details if run.run_details else None) or []
        )

    def _cannot(self, error: Exception) -> None:
        self._blind = True
        self.warned(
            f"{error}; whether anything of a repeated run works is judged by Kubeflow's list of its tasks, which may"
            " not show a run that is stuck: look at its page when it seems to be"
        )
