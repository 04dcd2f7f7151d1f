"""What can be checked before an evolution is run on a cluster, from its configuration alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from cycleqd.errors import CycleQDError
from cycleqd.evaluation.task import load_task
from cycleqd.run.kubeflow.endpoint import fault
from cycleqd.search.config import Config
from cycleqd.search.place import Image, Place

IMAGES: tuple[Image, ...] = ("control", "weights", "evaluate")
_OBJECT = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_TAKEN = ("cycleqd/", "pipeline/", "pipelines.kubeflow.org/", "workflows.argoproj.io/")


def check_cluster(config: Config) -> Iterator[str]:
    """What keeps a configuration from running on a cluster, as far as it alone shows.

    Args:
        config: The evolution's configuration.
    """
    place = config.place
    if place.services == "embedded":
        yield (
            "place.services is embedded, which pods cannot reach: make it external, and name the S3 store and the"
            f" MLflow server in the ConfigMap '{place.config_map}'"
        )
    if place.endpoint is not None and (wrong := fault(place.endpoint)) is not None:
        yield f"place.endpoint {wrong}"
    if place.tls_ca is not None and not Path(place.tls_ca).is_file():
        yield f"place.tls_ca: there is no file {place.tls_ca}; give the certificate of the KFP API's authority"
    for key, names in _objects(place).items():
        for name in names:
            if not _OBJECT.fullmatch(name):
                yield f"place.{key}: '{name}' cannot be the name of an object in Kubernetes; correct it"
    yield from _taken(place)
    for image in IMAGES:
        yield from _check_pods(image, place)


def _objects(place: Place) -> dict[str, tuple[str, ...]]:
    """The keys of the place that name objects in Kubernetes, and the names."""
    keys = ("namespace", "config_map")
    account = (place.service_account,) if place.service_account else ()
    found = {key: (str(getattr(place, key)),) for key in keys}
    return {**found, "service_account": account, "pull_secrets": place.pull_secrets}


def _taken(place: Place) -> Iterator[str]:
    """Labels that are not the user's to give."""
    for label in place.labels:
        if label.startswith(_TAKEN):
            yield f"place.labels: '{label}' is a label by which pods are found; give it another name"


def _check_pods(image: Image, place: Place) -> Iterator[str]:
    """The image of one kind of pods and what they ask for."""
    reference, pods = getattr(place.images, image), getattr(place, image)
    tag = _tag(reference)
    if tag in ("", "latest"):
        yield (
            f"place.images.{image} is '{reference}', {'tagged latest' if tag else 'without a tag'}: which image that"
            " is changes, so name a version or a digest"
        )
    if image == "control" and pods.gpu:
        yield f"place.control.gpu is {pods.gpu}: no control stage uses a GPU; remove it"
    elif image != "control" and place.device == "cuda" and not pods.gpu:
        yield f"place.device is cuda, but place.{image}.gpu is 0: ask for a GPU, or make the device auto"
    elif place.device == "cpu" and pods.gpu:
        yield f"place.{image}.gpu is {pods.gpu}, but place.device is cpu: the GPU would be idle; change one of the two"
    if pods.shared_memory and quantity(pods.shared_memory) >= quantity(pods.memory):
        yield (
            f"place.{image}.shared_memory is {pods.shared_memory} of a memory of {pods.memory}, which it is part of:"
            " ask for more memory"
        )


def cluster_warnings(config: Config) -> Iterator[str]:
    """What is allowed on a cluster but unlikely to be meant.

    Args:
        config: The evolution's configuration.
    """
    place = config.place
    if tagged := [image for image in IMAGES if "@" not in getattr(place.images, image)]:
        yield (
            f"place.images of {', '.join(tagged)} are named by tag, so an audit cannot tell which bytes ran;"
            " `docker/build --push` writes a profile with digests"
        )
    if config.evaluation.engine == "vllm" and not place.evaluate.gpu and place.device != "cpu":
        yield "evaluation.engine is vllm, but place.evaluate.gpu is 0: vLLM would run on the CPU"
    if place.evaluate.gpu > 1 and not place.evaluate.shared_memory:
        yield (
            f"place.evaluate has {place.evaluate.gpu} GPUs, but shared_memory is not set: vLLM's workers would share"
            " the 64 MiB of a container's /dev/shm"
        )
    for name, task in config.tasks.items():
        with contextlib.suppress(CycleQDError):  # a class that cannot be loaded is reported elsewhere
            kind = load_task(task.class_)
            yield from (f"task '{name}': {sentence}" for sentence in kind.in_pods(task.settings))
            needed, there = kind.memory(task.settings, place.workers), quantity(place.evaluate.memory)
            if needed > there:
                yield (
                    f"task '{name}': what {place.workers} replies run may take {needed / 1e9:.1f} GB by its limits,"
                    f" and place.evaluate.memory is {place.evaluate.memory}, for the model, too: lower place.workers or"
                    " the task's own limit, where it has one, or ask for more"
                )


def _tag(reference: str) -> str:
    """What follows the image's name: its digest, else its tag, else nothing."""
    name, at, digest = reference.partition("@")
    return digest if at else name.rpartition("/")[2].partition(":")[2]


def quantity(text: str) -> float:
    """Bytes of a Kubernetes quantity: "16Gi" → 2³⁴.

    Args:
        text: A number with a unit or without.
    """
    number, unit, binary = re.fullmatch(r"([0-9.]+)([EPTGMK]?)(i?)", text).groups()  # type: ignore[union-attr]
    return float(number) * float((1024 if binary else 1000) ** " KMGTPE".index(unit or " "))
