"""What Kubeflow Pipelines answers when it refuses, as errors of ours."""

from __future__ import annotations

from typing import Any

from cycleqd.errors import ConflictError, CycleQDError, InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.endpoint import MOUNTED_TOKEN, TOKEN, TRANSIENT
from cycleqd.run.kubeflow.replies import message_of, short


class MissingError(ConflictError):
    """There is nothing of that id on the server."""


class ExistsError(ConflictError):
    """Something of that name is on the server already."""


def refused(error: Any, where: str, namespace: str) -> CycleQDError:
    """One sentence for an answer that is no success.

    Args:
        error: As the generated client raises it.
        where: The server's address.
        namespace: Where runs are wanted.
    """
    if not error.status:  # the generated client made it of an SSLError
        return untrusted(error.__context__ or error, where)
    text = message_of(error)
    if error.status == 401:
        return InvalidInputError(
            f"{where} does not accept the credentials ({text}); give a valid token as {TOKEN} or, in a pod,"
            f" mount one for the audience pipelines.kubeflow.org at {MOUNTED_TOKEN}"
        )
    if error.status == 403:
        return InvalidInputError(
            f"{where} does not allow this in namespace '{namespace}' ({text});"
            " correct --namespace or place.namespace, or have the account added to it"
        )
    if error.status in TRANSIENT:
        return UnavailableError(
            f"Kubeflow Pipelines at {where} answers {error.status} ({text}); look at its ml-pipeline pod's log"
        )
    kind = {404: MissingError, 409: ExistsError}.get(error.status, ConflictError)
    return kind(f"Kubeflow Pipelines at {where} refuses ({error.status}: {text}); look at what it names")


def untrusted(cause: BaseException, where: str) -> UnavailableError:
    """One sentence for a connection that TLS did not allow.

    Args:
        cause: urllib3's SSLError, whose argument is what OpenSSL met.
        where: The server's address.
    """
    if any(getattr(met, "reason", None) == "WRONG_VERSION_NUMBER" for met in cause.args):
        return UnavailableError(f"{where} does not speak TLS; begin the endpoint with http://")
    return UnavailableError(
        f"the certificate of {where} cannot be verified ({short(cause)}); name its authority as place.tls_ca"
    )
