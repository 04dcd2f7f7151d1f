"""The few things asked of Kubernetes itself: whether named objects are there, and the logs of a run's pods."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.run.driver import FAILED_TASK, TaskLog
from cycleqd.run.kubeflow.replies import message_of, short
from cycleqd.storage import layout

_TIMEOUT = (5, 30)
RUN_LABEL = "pipeline/runid"
_CONTAINER = "main"  # Argo's name for the container that does a pod's work
_DRIVER = re.compile(r"-driver-\d+$")  # KFP's pod that prepares the inputs of the task's own pod
_PAGE, _FEW = 200, 3  # a workflow may be a megabyte
_MOST = 8 << 20


class ForbiddenError(UnavailableError):
    """This account may not ask for that."""


class Kubernetes:
    """The API of the cluster that this process is in, or of the kubeconfig's current context."""

    def __init__(self) -> None:
        """Raises UnavailableError where neither is known."""
        from kubernetes import client, config
        from urllib3 import Retry

        configuration = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG") or None, client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise UnavailableError(
                f"no Kubernetes cluster is known ({short(error)}); name a kubeconfig as KUBECONFIG"
            ) from error
        configuration.retries = Retry(1, backoff_factor=0.3)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # no line for every attempt
        self.where: str = configuration.host
        shared = client.ApiClient(configuration)
        self._core = client.CoreV1Api(shared)
        self._custom = client.CustomObjectsApi(shared)

    def find(self, kind: str, name: str, namespace: str) -> Any | None:
        """An object, None when there is none.

        Args:
            kind: secret, config_map, service_account, persistent_volume_claim or namespace.
            name: The object's.
            namespace: Where it is; a namespace is in none.

        Raises:
            ForbiddenError: This account may not ask for it.
            UnavailableError: Nobody answers.
        """
        with self._reported(f"{kind} '{name}'"):
            try:
                if kind == "namespace":
                    return self._core.read_namespace(name, _request_timeout=_TIMEOUT)
                read = getattr(self._core, f"read_namespaced_{kind}")
                return read(name, namespace, _request_timeout=_TIMEOUT)
            except Exception as error:
                if getattr(error, "status", None) == 404:
                    return None
                raise

    def pods(self, run_id: str, namespace: str, drivers: bool = False) -> list[TaskLog]:
        """The pods of a run in the order of their start.

        Args:
            run_id: The run's id in KFP.
            namespace: Where its pods are.
            drivers: Those of KFP's own drivers, too.
        """
        found = [self._pod(one, namespace) for one in self.described(run_id, namespace)]
        kept = [pod for pod in found if drivers or not _DRIVER.search(pod.name)]
        return sorted(kept, key=lambda pod: (pod.started or "~", pod.name))

    def described(self, run_id: str, namespace: str) -> Iterator[Any]:
        """The pods of a run, as Kubernetes describes them.

        Args:
            run_id: The run's id in KFP.
            namespace: Where its pods are.
        """
        token = None
        while True:
            with self._reported(f"the pods of run {run_id}"):
                page = self._core.list_namespaced_pod(
                    namespace,
                    label_selector=f"{RUN_LABEL}={run_id}",
                    limit=_PAGE,
                    _continue=token,
                    _request_timeout=_TIMEOUT,
                )
            yield from page.items
            token = page.metadata._continue
            if not token:
                return

    def warnings(self, pod: str, namespace: str) -> list[Any]:
        """The events of a pod that are warnings.

        Args:
            pod: The pod's name.
            namespace: Where it is.
        """
        with self._reported(f"the events of pod {pod}"):
            selected = f"involvedObject.kind=Pod,involvedObject.name={pod},type=Warning"
            page = self._core.list_namespaced_event(namespace, field_selector=selected, _request_timeout=_TIMEOUT)
        return list(page.items)

    def workflows(self, namespace: str, run_id: str = "") -> list[Any]:
        """Argo's workflows of a run, as dicts: one, until it is cleaned up or taken; without a run the first few.

        Args:
            namespace: Where its pods are.
            run_id: The run's id in KFP.
        """
        with self._reported(f"the workflow of run {run_id}"):
            found = self._custom.list_namespaced_custom_object(
                *("argoproj.io", "v1alpha1", namespace, "workflows"),
                label_selector=f"{RUN_LABEL}={run_id}" if run_id else RUN_LABEL,
                limit=_FEW,
                _request_timeout=_TIMEOUT,
            )
        return list(found["items"])

    def _log(self, pod: str, namespace: str, lines: int) -> str:
        """The last lines that the pod's own container wrote; at most 8 MiB."""
        from kubernetes.client.exceptions import ApiException

        with self._reported(f"the log of pod {pod}"):
            try:
                answer = self._core.read_namespaced_pod_log(
                    pod,
                    namespace,
                    container=_CONTAINER,
                    tail_lines=lines,
                    limit_bytes=_MOST,
                    _preload_content=False,
                    _request_timeout=_TIMEOUT,
                )
            except ApiException as error:
                if error.status in (400, 404):  # it waits for its image, or is gone
                    return f"(no log: {message_of(error)})"
                raise
            return str(answer.data.decode(errors="replace"))

    def _pod(self, one: Any, namespace: str) -> TaskLog:
        """A pod as Kubernetes describes it."""
        given = _given(one)
        children = layout.children_in(" ".join(given))
        started = one.status.start_time
        return TaskLog(
            name=one.metadata.name,
            task=_task(given) or one.metadata.name,
            child=children[0] if len(children) == 1 else "",
            phase=one.status.phase or "Unknown",
            started=started.isoformat() if started else "",
            read=partial(self._log, one.metadata.name, namespace),
            ended=_ended(one.status) if one.status.phase == FAILED_TASK else "",
        )

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if error.status == 401:
                raise InvalidInputError(
                    f"the Kubernetes API at {self.where} does not accept the kubeconfig's credentials; renew them"
                ) from error
            kind = ForbiddenError if error.status == 403 else UnavailableError
            raise kind(
                f"the Kubernetes API at {self.where} does not return {what} ({error.status}: {message_of(error)})"
            ) from error
        except (HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise UnavailableError(
                f"the Kubernetes API does not answer at {self.where} ({short(cause)}); check the kubeconfig"
            ) from error


def task_of(one: Any) -> str:
    """The pipeline's name of a pod's task, "" for a pod of KFP's own.

    Args:
        one: The pod, as Kubernetes describes it.
    """
    return _task(_given(one))


def _given(one: Any) -> list[str]:
    """The command and the arguments of the container that does a pod's work."""
    main = next((c for c in one.spec.containers if c.name == _CONTAINER), one.spec.containers[0])
    return [*(main.command or []), *(main.args or [])]


def _ended(status: Any) -> str:
    """How the container that does the pod's work ended: "exit code 137, OOMKilled"; "" where that is not known."""
    states = [one.state for one in status.container_statuses or [] if one.name == _CONTAINER and one.state]
    ended = next((state.terminated for state in states), None)
    if ended is None:
        return str(status.reason or "")  # Evicted
    named = ended.reason not in (None, "", "Error", "Completed")
    return f"exit code {ended.exit_code}{f', {ended.reason}' if named else ''}"


def _task(given: Sequence[str]) -> str:
    """The pipeline's name of a pod's task, from the arguments of KFP's launcher; "" for another pod."""
    try:
        label = json.loads(given[given.index("--component_spec") + 1])["executorLabel"]
    except (ValueError, IndexError, KeyError, TypeError):
        return ""
    return str(label).removeprefix("exec-")
