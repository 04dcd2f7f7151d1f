"""Why tasks of a run wait: what Kubernetes and Argo say of them, and what to do. KFP itself reports none of it.

Where this account may not ask Kubernetes for something, or none is known, what that would tell is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.pods import ForbiddenError, Kubernetes, task_of
from cycleqd.run.kubeflow.replies import short
from cycleqd.search.place import Place
from pipelines.placement import LABEL

LOOK_SECONDS = 15.0
"""Between two looks. What two looks saw is said: a pod often waits some seconds for the one before it."""
_EVENTS = 8  # pods of a look whose events are read, of those that neither run nor say why
_QUOTA = "exceeded quota"  # as Kubernetes words it; Argo repeats that and tries again


_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_VOLUME = ("FailedMount", "FailedAttachVolume")


class Waiting(NamedTuple):
    """A pod that waits, or one that is not made. `image`: its kind of pods, "" where that is not known or KFP's own.

    `reason` and `message` are Kubernetes' own.
    """

    task: str
    image: str
    reason: str
    message: str

    @property
    def kind(self) -> tuple[str, str]:
        """What one sentence is said of: an image that is not to be had has reasons that take turns."""
        return ("image" if self.reason in _IMAGE else self.reason, self.image)


class Waits:
    """Looks at the pods of runs, and at what Argo keeps of their workflows."""

    def __init__(self, place: Place) -> None:
        """Ask nothing yet.

        Args:
            place: Its namespace is looked at.
        """
        self.place = place
        self._kubernetes: Kubernetes | None = None
        self._denied: set[Callable[..., Iterator[Waiting]]] = set()
        self._looked = float("-inf")
        self._seen: set[tuple[str, str, str]] = set()
        self._said: set[tuple[str, str, str]] = set()

    def look(self, run_id: str) -> dict[tuple[str, str], str]:
        """Why tasks of a run wait now: a sentence, without a full stop, for each kind of reason.

        Args:
            run_id: The run's id in KFP.
        """
        found: dict[tuple[str, str], list[Waiting]] = {}
        for ask in (Waits._pods, Waits._workflow):
            if ask in self._denied:
                continue
            try:
                self._kubernetes = self._kubernetes or Kubernetes()
                for one in ask(self, run_id):
                    found.setdefault(one.kind, []).append(one)
            except (ForbiddenError, InvalidInputError):
                self._denied.add(ask)
            except UnavailableError:
                if self._kubernetes is None:  # nor will there be one
                    self._denied.add(ask)
        return {kind: self._sentence(waiting) for kind, waiting in found.items()}

    def news(self, run_id: str) -> list[str]:
        """What there is to say of a run that is watched, each thing once. May be called at any time.

        Args:
            run_id: The run's id in KFP.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return []
        found = {(run_id, *kind): sentence for kind, sentence in self.look(run_id).items()}
        self._looked = time.monotonic()
        new = (found.keys() & self._seen) - self._said
        self._seen |= found.keys()
        self._said |= new
        return [found[kind] for kind in sorted(new)]

    def _pods(self, run_id: str) -> Iterator[Waiting]:
        """Pods that have no node, no image, no Secret, no volume."""
        assert self._kubernetes is not None
        silent = []
        for pod in self._kubernetes.described(run_id, self.place.namespace):
            if pod.status.phase == "Pending":
                task, image = task_of(pod) or "of Kubeflow's own", (pod.metadata.labels or {}).get(LABEL, "")
                if (told := _told(pod)) is None:
                    silent.append((task, image, pod.metadata.name))
                else:
                    yield Waiting(task, image, *told)
        for task, image, name in silent[:_EVENTS]:
            for event in self._kubernetes.warnings(name, self.place.namespace):
                yield Waiting(task, image, event.reason, event.message or "")

    def _workflow(self, run_id: str) -> Iterator[Waiting]:
        """Pods that a quota does not let Argo make."""
        assert self._kubernetes is not None
        for workflow in self._kubernetes.workflows(self.place.namespace, run_id):
            nodes = workflow.get("status", {}).get("nodes") or {}
            for node in nodes.values():
                name, message = node.get("displayName", "").partition("(")[0], node.get("message", "")  # "executor(0)"
                if node.get("phase") == "Pending" and _QUOTA in message:
                    if name == "executor":  # KFP's name for what does the work of the task around it
                        name = nodes.get(node.get("boundaryID"), {}).get("displayName", name)
                    yield Waiting(name, "", _QUOTA, message[message.index(_QUOTA) :])

    def _sentence(self, waiting: list[Waiting]) -> str:
        """Of those of one kind: who waits for what, and what to do."""
        names, namespace = sorted({one.task for one in waiting}), f"namespace '{self.place.namespace}'"
        who = f"task {names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        _, image, reason, message = waiting[0]
        why, asks = short(message or reason), f"what place.{image} asks for" if image else "what the place asks for"
        again = "then `cycleqd cancel` and drive again"
        if reason == "Unschedulable":
            said = f"waits for a node ({why}): if none is to come or to get room, correct {asks}, {again}"
        elif reason == "SchedulingGated":
            said = f"is held back ({why}): its queue lets it go when there is room"
        elif reason == _QUOTA:
            said = f"waits for the quota of {namespace} ({why}): Argo tries again by itself; where that cannot help,"
            said += f" lower {asks}, {again}"
        elif reason in _IMAGE:
            named = f"place.images.{image}" if image else "the image's name"
            said = f"waits for an image that cannot be had ({why}): correct {named} or place.pull_secrets, {again}"
        elif reason == "CreateContainerConfigError":
            said = f"cannot start ({why}): have that in {namespace}, and it starts by itself"
        elif reason in _VOLUME:
            said = f"waits for a volume ({why}): have that in {namespace}, or correct the place, {again}"
        else:
            said = f"waits ({reason}: {why}): `kubectl -n {self.place.namespace} describe pod` says more"
        return f"{who} {said}"


def _told(pod: Any) -> tuple[str, str] | None:
    """The reason for which a pod waits and its message; None where its status has none."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.reason, condition.message or ""
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason not in ("ContainerCreating", "PodInitializing", None):
            return waiting.reason, waiting.message or ""
    return None
