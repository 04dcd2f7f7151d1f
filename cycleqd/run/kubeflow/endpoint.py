"""The address of the API of Kubeflow Pipelines, and the credentials for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError
from cycleqd.search.place import Place

if TYPE_CHECKING:
    from kfp_server_api import Configuration

ENDPOINT, TOKEN, TOKEN_FILE = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"
MOUNTED_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # where kfp's own client looks, too
TRANSIENT = (429, 500, 502, 503, 504)
"""The answers that another attempt may better."""
_HOME = "kubeflow"  # the namespace of the server itself, unless an endpoint is given


def fault(endpoint: str) -> str | None:
    """What keeps a text from being the address of an API, as the end of a sentence; None when nothing does.

    Args:
        endpoint: What a user wrote.
    """
    if not endpoint.startswith(("http://", "https://")):
        return f"is '{endpoint}'; begin it with http:// or https://"
    if "@" in endpoint.split("/")[2]:  # it would be shown, and go into the parameters of every run
        return f"holds credentials; leave them out, and give a token as {TOKEN}"
    return None


def given(place: Place) -> str | None:
    """The address that settings name; None where it follows from the cluster that this process knows.

    Args:
        place: Its endpoint.
    """
    return place.endpoint or os.environ.get(ENDPOINT)


def configure(place: Place) -> Configuration:
    """Address from place.endpoint, the environment, the pod's cluster or the kubeconfig's; credentials; attempts.

    Args:
        place: Its endpoint and tls_ca.

    Raises:
        InvalidInputError: No address is known, or it has credentials in it.
    """
    import kfp_server_api as api
    from urllib3 import Retry

    configuration = api.Configuration()
    # Two more attempts at what can be repeated; a POST only when nothing was sent
    configuration.retries = Retry(2, backoff_factor=0.3, status_forcelist=TRANSIENT, raise_on_status=False)
    endpoint = given(place)
    if endpoint:
        if (wrong := fault(endpoint)) is not None:
            raise InvalidInputError(f"the endpoint of Kubeflow Pipelines {wrong}")
        configuration.host = endpoint.rstrip("/")
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        configuration.host = f"http://ml-pipeline.{_HOME}:8888"
    else:
        _from_kubeconfig(configuration)
    if place.tls_ca:
        configuration.ssl_ca_cert = place.tls_ca
    _authorize(configuration)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # no line for every attempt; the last one is reported
    return configuration


def _from_kubeconfig(configuration: Configuration) -> None:
    """By way of the Kubernetes API, which passes on to services."""
    from kubernetes import config

    try:
        config.load_kube_config(os.environ.get("KUBECONFIG") or None, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise InvalidInputError(
            f"no address of Kubeflow Pipelines is known; give --endpoint, place.endpoint or {ENDPOINT}, or a kubeconfig"
            f" ({' '.join(str(error).split())})"
        ) from error
    proxied = f"{configuration.host}/api/v1/namespaces/{_HOME}/services/ml-pipeline:http/proxy"
    configuration.host, refresh = proxied, configuration.refresh_api_key_hook

    def keep_the_path(
        given: Configuration,
    ) -> None:  # that hook sets the address and itself, too
        refresh(given)
        given.host, given.refresh_api_key_hook = proxied, keep_the_path

    if refresh is not None:
        configuration.refresh_api_key_hook = keep_the_path


def _authorize(configuration: Configuration) -> None:
    token, file = os.environ.get(TOKEN), Path(os.environ.get(TOKEN_FILE) or MOUNTED_TOKEN)
    if not token and not file.exists():
        return
    configuration.api_key_prefix["authorization"] = "Bearer"
    configuration.api_key["authorization"] = token or file.read_text().strip()
    if not token:  # the kubelet writes a new one every hour or so

        def read_again(given: Configuration) -> None:
            given.api_key["authorization"] = file.read_text().strip()

        configuration.refresh_api_key_hook = read_again
