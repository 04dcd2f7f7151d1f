"""The section `place`: where and how the work runs. It changes no result, and may change at any time."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
)

from cycleqd import __version__
from cycleqd.search.engine_args import SpeedArgs
from cycleqd.search.fields import Location, Section


def _kubernetes(kind: str, pattern: str, example: str) -> AfterValidator:
    """Refuse what Kubernetes, by way of KFP, would refuse when a pod is made."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"'{text}' is not a Kubernetes {kind}; write it like {example}")
        return text

    return AfterValidator(check)


def _address(url: str) -> str:
    parts = urlsplit(url)
    plain = parts.scheme in ("http", "https") and parts.hostname and not parts.username and not parts.query
    if url and not plain:
        raise ValueError(
            f"'{url}' is not the address of a server; write it like http://cycleqd-server:8000, without a key"
        )
    return url.rstrip("/")


Cpu = Annotated[str, _kubernetes("quantity", r"([0-9]*[.])?[0-9]+m?", '"2" or "500m"')]
_BYTES = r"[0-9]+(\.[0-9]+)?([EPTGMK]i?)?"
Bytes = Annotated[str, _kubernetes("quantity", _BYTES, '"8G" or "16Gi"')]
_DOMAIN, _WORD = r"(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/", r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
Resource = Annotated[str, _kubernetes("resource", _DOMAIN + _WORD, '"nvidia.com/gpu"')]
Key = Annotated[str, _kubernetes("label", f"({_DOMAIN})?{_WORD}", '"nvidia.com/gpu.product"')]
Value = Annotated[str, _kubernetes("label's value", f"({_WORD})?", '"NVIDIA-H100-80GB-HBM3"')]

Object = Annotated[str, _kubernetes("name", r"([a-z0-9][-a-z0-9.]{0,251}[a-z0-9])?", "cycleqd-cache")]

Image = Literal["control", "weights", "evaluate"]


class Images(Section):
    """The three images, as full references: with a registry where nodes do not hold them, with a digest to pin them
    (`registry.example/cycleqd/control@sha256:…`).
    """

    control: str = f"cycleqd/control:{__version__}"
    """Image of seed, select_parents, update_archives and report."""
    weights: str = f"cycleqd/weights:{__version__}"
    """Image of merge, mutate and aggregate."""
    evaluate: str = f"cycleqd/evaluate:{__version__}"
    """Image of evaluate, and of basis."""


def image_of(stage: str) -> Image:
    """The image that a stage runs in, which is also the name of its resources.

    Args:
        stage: Name of the stage, such as "merge".
    """
    if stage in ("merge", "mutate", "merge_and_mutate", "aggregate", "choose_final"):
        return "weights"
    return "evaluate" if stage in ("basis", "evaluate") else "control"


class Server(Section):
    """A server that keeps the base in memory and generates for `evaluation.engine: server` (`cycleqd serve`)."""

    url: Annotated[str, AfterValidator(_address)] = ""
    """Its address, as tasks reach it: http://cycleqd-server:8000."""
    secret: Object = ""
    """Kubernetes Secret whose API_KEY pods show to it; elsewhere CYCLEQD_SERVER_KEY is taken from the environment."""


class Volumes(Section):
    """Claims on the cluster's storage, which outlives pods."""

    cache: Object = ""
    """PersistentVolumeClaim that pods which score share, for checkpoints (up to `place.cache_size`) and what vLLM
    compiles; empty: each has its own disk."""


class Toleration(Section):
    """A taint that pods tolerate, as Kubernetes writes it."""

    key: Key | None = None
    """Key of the taint; empty with `Exists`: every taint."""
    operator: Literal["Equal", "Exists"] | None = None
    """Whether the taint's value must be equal, or only exist."""
    value: Value | None = None
    """Value of the taint."""
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None
    """Effect of the taint; empty: all."""
    seconds: int | None = Field(default=None, alias="tolerationSeconds", ge=0)
    """How long a pod stays on a node with a NoExecute taint."""


class Resources(Section):
    """What one task pod asks for on a cluster (Kubernetes quantities), and the nodes it may run on."""

    cpu: Cpu = "2"
    """CPUs: the request, and the limit, which is at least one."""
    memory: Bytes = "8G"
    """Memory, request and limit."""
    gpu: int = Field(default=0, ge=0)
    """GPUs of a pod; vLLM divides each model among those of `place.evaluate`."""
    gpu_type: Resource = "nvidia.com/gpu"
    """Name of the GPU resource."""
    shared_memory: Annotated[str, _kubernetes("quantity", f"({_BYTES})?", '"16Gi"')] = ""
    """Size of /dev/shm, a part of `memory`; empty: the container's own 64 MiB."""
    node_selector: dict[Key, Value] = Field(default_factory=dict)
    """Labels of the nodes that a pod may run on."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that pods tolerate."""
    timeout: int | None = Field(default=None, ge=60)
    """Seconds until the task is ended; empty: `place.timeout`."""


class Place(Section):
    """Where and how the work runs; changes no result, and may change at any time."""

    runner: Literal["local", "docker", "kubeflow"] = "local"
    """Tasks run as processes of this machine, as its containers, or on a Kubeflow cluster."""
    services: Literal["embedded", "external"] = "external"
    """`embedded`: S3 and MLflow servers in `folder`; `external`: those that the environment names."""
    bucket: str = "cycleqd"
    """The S3 bucket; every evolution has a prefix of its own in it."""
    folder: Annotated[Location, Field(validate_default=True)] = ".cycleqd"
    """Where embedded services, cached checkpoints and temporary files are kept."""
    group: Literal["task", "child", "generation"] = "task"
    """What one task of the pipeline evaluates: all children on one `task`, one `child` on all tasks, or all children of
    a `generation` on all tasks. With `task`, `fused` children are scored one by one, too; cores never are.
    """
    fused: Literal["auto"] | bool = "auto"
    """`true`: each child is merged and mutated in one task of its own; `false`: all children of a generation are merged
    in one task and mutated in another. The checkpoints' bytes are the same either way. `auto`: full checkpoints over
    1 GB are fused, smaller ones are not; cores never are."""
    generations_per_run: int = Field(default=1, ge=1)
    """Generations in one pipeline run."""
    parallelism: int = Field(default=2, ge=1)
    """Children that are worked on at a time on one machine; on a cluster GPUs, quotas and queues limit."""
    workers: int = Field(default=4, ge=1)
    """Samples of a task that are judged at a time."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of merging and mutating; any number gives the same bytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models generate and SVD mutation computes; `auto` is CUDA where there is a device."""
    engine_args: SpeedArgs = SpeedArgs()
    """vLLM's own settings that change no reply; other engines have no use for them."""
    cache_size: str = "50GB"
    """Space for cached checkpoints on a machine."""
    timeout: int = Field(default=6 * 3600, ge=60)
    """Seconds until a task is ended."""
    retries: int = Field(default=2, ge=0)
    """How often `drive` repeats a failed run on a cluster."""
    pins: tuple[str, ...] = ()
    """Ids of models that are never cleaned up."""
    images: Images = Images()
    """The images of tasks in containers and pods."""
    server: Server = Server()
    """The server that generates where `evaluation.engine` is `server`."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a cluster pulls the images."""
    pull_secrets: tuple[str, ...] = ()
    """Kubernetes Secrets with the registry's credentials."""
    endpoint: str | None = None
    """URL of the KFP API; empty: `KF_PIPELINES_ENDPOINT`, else the kubeconfig's cluster."""
    tls_ca: Location | None = None
    """File with the certificate authority of that URL; empty: the system's."""
    namespace: str = "kubeflow"
    """Kubernetes namespace in which runs execute."""
    service_account: str = ""
    """Service account of pods; empty: the one that KFP chooses."""
    secret: Object | None = "cycleqd-credentials"
    """Secret with keys for S3 and credentials for MLflow, in `namespace`; `null` where pods need none, since S3 knows
    their service account."""
    config_map: str = "cycleqd-settings"
    """ConfigMap with the addresses of S3 and MLflow, in `namespace`."""
    certificates: Object = ""
    """ConfigMap, in `namespace`, whose `ca.crt` holds the certificate authorities to trust; empty: the images'."""
    volumes: Volumes = Volumes()
    """Claims that pods mount."""
    labels: dict[Key, Value] = Field(default_factory=dict)
    """Labels of all task pods: a queue's name (`kueue.x-k8s.io/queue-name`), what costs are counted by."""
    annotations: dict[Key, str] = Field(default_factory=dict)
    """Annotations of all task pods."""
    control: Resources = Resources(cpu="1", memory="2G")
    """Resources of pods of the `control` image."""
    weights: Resources = Resources()
    """Resources of pods of the `weights` image."""
    evaluate: Resources = Resources()
    """Resources of pods of the `evaluate` image."""

    _profile: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """What people call it: the profile that it comes from, without folder and suffix; else its runner."""
        return self._profile or self.runner

    def named(self, profile: str) -> Place:
        """The same place under another name.

        Args:
            profile: The profile that it comes from.
        """
        found = self.model_copy()
        found._profile = profile
        return found

    def image(self, stage: str) -> str:
        """The reference of a stage's image.

        Args:
            stage: Name of the stage, such as "merge".
        """
        found: str = getattr(self.images, image_of(stage))
        return found

    def resources(self, stage: str) -> Resources:
        """What a stage's pod asks for.

        Args:
            stage: Name of the stage, such as "merge".
        """
        found: Resources = getattr(self, image_of(stage))
        return found
