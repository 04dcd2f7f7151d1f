"""Where a task runs: image, resources, retries, time-outs, credentials. Changes no result."""

from __future__ import annotations

from typing import Any

from kfp import dsl, kubernetes

from cycleqd.config import Place, Resources

CREDENTIALS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI")
OPTIONAL_CREDENTIALS = ("AWS_REGION", "AWS_CA_BUNDLE", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
SCRATCH = "/scratch"
BACKOFF = "30s"


def assign(task: dsl.PipelineTask, stage: str, place: Place) -> dsl.PipelineTask:
    """Give a task the image of its stage and all that the place says about it.

    The records in S3 are the cache, so KFP's own is off. Every task has a time-out: a pod whose image cannot be pulled
    would wait for ever.
    """
    task.set_container_image(place.image.format(stage=stage))
    task.set_caching_options(False)
    kubernetes.set_timeout(task, place.timeout)
    if place.runner == "kubeflow":
        _on_cluster(task, stage, place)
    return task


def _on_cluster(task: dsl.PipelineTask, stage: str, place: Place) -> None:
    """What only a pod needs. Left out elsewhere, where kfp.local would put these values over the machine's own."""
    # pods are lost to preemption and moving nodes; kfp.local would repeat a wrong configuration after half a minute
    task.set_retry(num_retries=place.retries, backoff_duration=BACKOFF, backoff_factor=2.0)
    resources = _resources(stage, place)
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.gpu:
        task.set_accelerator_type(resources.gpu_type).set_accelerator_limit(resources.gpu)
        if stage == "evaluate":
            # vLLM's workers share tensors there, and a pod's default is 64 MiB
            kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit="16Gi")
    for label, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in resources.tolerations:
        kubernetes.add_toleration(task, **_snake(toleration))
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH)
    kubernetes.use_secret_as_env(task, place.secret, {name: name for name in CREDENTIALS})
    kubernetes.use_secret_as_env(task, place.secret, {name: name for name in OPTIONAL_CREDENTIALS}, optional=True)
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    task.set_env_variable("CYCLEQD_IMAGE", place.image.format(stage=stage))
    task.set_env_variable("CYCLEQD_BUCKET", place.bucket)
    task.set_env_variable("CYCLEQD_CACHE", f"{SCRATCH}/cache")
    task.set_env_variable("CYCLEQD_SCRATCH", SCRATCH)


def _resources(stage: str, place: Place) -> Resources:
    if stage == "evaluate":
        return place.evaluate
    return place.weights if stage in ("merge", "mutate", "aggregate") else Resources()


def _snake(toleration: dict[str, str]) -> dict[str, Any]:
    """Kubernetes' spelling of a toleration in kfp-kubernetes' terms."""
    fields: dict[str, Any] = dict(toleration)
    if "tolerationSeconds" in fields:
        fields["toleration_seconds"] = int(fields.pop("tolerationSeconds"))
    return fields
