"""What is checked before anything is started on a cluster: what can be asked from here. The rest is a warning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cycleqd.errors import CycleQDError, InvalidInputError, UnavailableError
from cycleqd.run import checks
from cycleqd.run.checks import Findings
from cycleqd.run.kubeflow.client import TESTED, Kubeflow
from cycleqd.run.kubeflow.pods import ForbiddenError, Kubernetes
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.storage.client import probe
from cycleqd.storage.objects import Store
from cycleqd.storage.staging import find_task
from pipelines.placement import AUTHORITIES, PAIRS, SECRET, SETTINGS


def check_server(kubeflow: Kubeflow, findings: Findings) -> None:
    """Whether the version is one that was tried.

    Args:
        kubeflow: The server.
        findings: A warning is added to it.
    """
    if not kubeflow.version.lstrip("v").startswith(f"{TESTED}."):
        findings.warnings.append(
            f"{kubeflow.where} is Kubeflow Pipelines {kubeflow.version}; what was tried is {TESTED}.0"
        )


def check_objects(place: Place, findings: Findings) -> None:
    """The objects in Kubernetes that pods name, as far as this account may ask for them.

    Args:
        place: It names the objects.
        findings: Problems and warnings are added to it.
    """
    wanted = [("namespace", place.namespace, ()), ("config_map", place.config_map, SETTINGS)]
    for kind, name, keys in (
        ("config_map", place.certificates, (AUTHORITIES,)),
        ("service_account", place.service_account, ()),
        ("persistent_volume_claim", place.volumes.cache, ()),
        *(("secret", name, ()) for name in (place.secret, *place.pull_secrets)),
    ):
        if name:
            wanted.append((kind, name, keys))
    try:
        kubernetes = Kubernetes()
        for kind, name, keys in wanted:
            found = _check_object(kubernetes, kind, name, keys, place, findings)
            if found is not None and (kind, name) == ("secret", place.secret):
                findings.problems += _lacking(found.data or {}, place)
    except CycleQDError as error:
        findings.warnings.append(f"{error}; whether secret and config map are there was not checked")


def _check_object(
    kubernetes: Kubernetes, kind: str, name: str, keys: tuple[str, ...], place: Place, findings: Findings
) -> Any | None:
    """The object; None when there is none, or this account may not ask."""
    try:
        found = kubernetes.find(kind, name, place.namespace)
    except ForbiddenError as error:
        if kind != "namespace":  # few accounts may ask for namespaces; the objects in one show that it exists
            findings.warnings.append(f"{error}; whether it is there was not checked")
        return None
    if found is None:
        findings.problems.append(_missing(kind, name, place.namespace))
        return None
    absent = [key for key in keys if key not in (found.data or {})]
    if absent:
        findings.problems.append(
            f"{kind.replace('_', ' ')} '{name}' in namespace '{place.namespace}' lacks {' and '.join(absent)}, without"
            " which no pod starts: add them"
        )
    return found


def _lacking(data: Mapping[str, str], place: Place) -> Iterator[str]:
    """What a Secret lacks: keys come in pairs. Which it has is not said of it: S3 may know pods by another identity."""
    where = f"secret '{place.secret}' in namespace '{place.namespace}'"
    if not set(SECRET) & set(data):
        yield (
            f"{where} has none of {', '.join(SECRET)}: add what S3 and MLflow ask for, or make place.secret null where"
            " pods are known by their service account"
        )
    for pair in PAIRS:
        if len(found := [key for key in pair if key in data]) == 1:
            yield f"{where} has {found[0]}, and of the two {' and '.join(pair)} one is of no use: add the other"


def _missing(kind: str, name: str, namespace: str) -> str:
    if kind == "namespace":
        return f"the cluster has no namespace '{name}'; correct --namespace or place.namespace"
    words = kind.replace("_", " ")
    return f"namespace '{namespace}' has no {words} '{name}'; create it (see manifests/), or correct the place"


def check_store(store: Store) -> None:
    """Check that S3 can be used from here.

    Args:
        store: The evolution.

    Raises:
        UnavailableError: It cannot.
    """
    try:
        probe(store)
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}; this command reads there how far the evolution is: from outside the cluster, port-forward the"
            " store and set AWS_ENDPOINT_URL, or let the driver run inside (manifests/)"
        ) from error


def check_tracking(url: str | None, findings: Findings) -> None:
    """MLflow is the pods' to reach; from here it is only looked for.

    Args:
        url: The environment's; None where it names none.
        findings: A warning is added to it.
    """
    if not url:
        findings.warnings.append("MLFLOW_TRACKING_URI is not set here: whether MLflow answers the pods was not checked")
        return
    if (silence := checks.tracking_silence(url, 10)) is not None:
        findings.warnings.append(f"MLflow does not answer here at {silence}; see that it answers the pods")


def check_inputs(config: Config, store: Store, findings: Findings) -> None:
    """What seeding reads: models that fit together, data and plug-ins that are there.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        findings: Problems and warnings are added to it.
    """
    checks.check_models(config, store, findings)
    for name, task in config.tasks.items():
        try:
            find_task(store.client, name, task)
        except CycleQDError as error:
            findings.collect(error)


def refuse(findings: Findings) -> None:
    """Refuse a configuration with problems.

    Args:
        findings: Everything that was checked.

    Raises:
        InvalidInputError: There are problems: it names all of them.
    """
    if findings.problems:
        raise InvalidInputError("\n".join(findings.problems))
