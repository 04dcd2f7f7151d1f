"""Where a task runs: image, resources, time-outs, credentials. Changes no result."""

from __future__ import annotations

from kfp import dsl, kubernetes

from cycleqd.search.place import Place, Resources, image_of

PAIRS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"))
SECRET = (*PAIRS[0], "MLFLOW_TRACKING_TOKEN", *PAIRS[1])
"""What the Secret may hold. S3 may know pods by another identity, and MLflow may ask for nothing."""
SETTINGS = ("MLFLOW_TRACKING_URI",)
OPTIONAL_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_REGION")
FIELDS = {"KFP_RUN_ID": "metadata.labels['pipeline/runid']", "KFP_POD_NAME": "metadata.name"}
SERVER_KEY = "CYCLEQD_SERVER_KEY"
SCRATCH, CACHE, CERTIFICATES = "/scratch", "/cache", "/certificates"
AUTHORITIES = "ca.crt"
TRUSTING = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Where S3's client, MLflow's, and the rest (Python's and Kubeflow's launcher) look for certificate authorities."""
LABEL = "cycleqd/image"


def assign(task: dsl.PipelineTask, stage: str, place: Place, name: str = "") -> dsl.PipelineTask:
    """Give a task its name, the image of its stage and all that the place sets for it; the task itself.

    The records in S3 are the cache, so KFP's own is off. Every task has a time-out: a pod whose image cannot be pulled
    would wait for ever. A task has one attempt: the controller of stock Kubeflow repeats no failure, whatever a task's
    retries, it only waits in between. Drivers repeat runs (see decisions).

    Args:
        task: A task of the pipeline that is being defined.
        stage: Name of the stage, such as "merge".
        place: Where the pipeline will run.
        name: What people see; empty: the stage's.
    """
    task.set_display_name(name or stage.replace("_", " "))
    task.set_container_image(place.image(stage))
    task.set_caching_options(False)
    kubernetes.set_timeout(task, place.resources(stage).timeout or place.timeout)
    if place.runner == "kubeflow":
        # left out elsewhere: kfp.local would put these values over the machine's own
        _ask_for(task, place.resources(stage))
        _tell(task, stage, place)
        for label, value in place.labels.items():
            kubernetes.add_pod_label(task, label, value)
        for name, text in place.annotations.items():
            kubernetes.add_pod_annotation(task, name, text)
        kubernetes.add_pod_label(task, LABEL, image_of(stage))  # what network policies select
        kubernetes.set_image_pull_policy(task, place.pull_policy)
        if place.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(place.pull_secrets))
    return task


def _ask_for(task: dsl.PipelineTask, resources: Resources) -> None:
    """What the pod gets and where it may run."""
    task.set_cpu_request(resources.cpu).set_cpu_limit(_at_least_one(resources.cpu))
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.gpu:
        task.set_accelerator_type(resources.gpu_type).set_accelerator_limit(resources.gpu)
    if resources.shared_memory:  # vLLM's workers share tensors there
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit=resources.shared_memory)
    for label, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in resources.tolerations:
        kubernetes.add_toleration(
            task, toleration.key, toleration.operator, toleration.value, toleration.effect, toleration.seconds
        )


def _at_least_one(cpu: str) -> str:
    """A CPU's worth of a limit: with a tenth of one, what a stage imports in two seconds takes it twenty."""
    cores = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return cpu if cores >= 1 else "1"


def _tell(task: dsl.PipelineTask, stage: str, place: Place) -> None:
    """The pod's environment: keys from the Secret, addresses from the ConfigMap, the rest from the place."""
    if place.secret:
        kubernetes.use_secret_as_env(task, place.secret, {name: name for name in SECRET}, optional=True)
    kubernetes.use_config_map_as_env(task, place.config_map, {name: name for name in SETTINGS})
    kubernetes.use_config_map_as_env(task, place.config_map, {name: name for name in OPTIONAL_SETTINGS}, optional=True)
    if place.server.secret and stage == "evaluate":
        kubernetes.use_secret_as_env(task, place.server.secret, {"API_KEY": SERVER_KEY})
    for name, path in FIELDS.items():
        kubernetes.use_field_path_as_env(task, name, path)
    task.set_env_variable("CYCLEQD_IMAGE", place.image(stage))
    task.set_env_variable("CYCLEQD_BUCKET", place.bucket)
    _mount(task, stage, place)


def _mount(task: dsl.PipelineTask, stage: str, place: Place) -> None:
    """The pod's folders, and the variables that lead there."""
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH)
    task.set_env_variable("CYCLEQD_SCRATCH", SCRATCH)
    shared = place.volumes.cache if stage == "evaluate" else ""
    if shared:
        kubernetes.mount_pvc(task, shared, CACHE)
        task.set_env_variable("CYCLEQD_COMPILED", f"{CACHE}/vllm")
    task.set_env_variable("CYCLEQD_CACHE", f"{CACHE}/models" if shared else f"{SCRATCH}/cache")
    if place.certificates:
        kubernetes.use_config_map_as_volume(task, place.certificates, CERTIFICATES)
        for name in TRUSTING:
            task.set_env_variable(name, f"{CERTIFICATES}/{AUTHORITIES}")
