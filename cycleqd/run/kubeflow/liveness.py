"""Whether anything of a run works: one that Kubeflow retried, or whose schedule is gone, can read RUNNING for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.pods import ForbiddenError, Kubernetes

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_AT_WORK = ("PENDING", "RUNNING")


class Liveness:
    """Asks for a run's pods; where these may not be listed, which is warned of once, KFP's list of tasks must do."""

    def __init__(self, namespace: str, warned: Callable[[str], None]) -> None:
        self.namespace = namespace
        self.warned = warned
        self._kubernetes: Kubernetes | None = None
        self._blind = False

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
