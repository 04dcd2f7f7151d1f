"""Clients of the S3 store: how they connect, how their failures are reported, what the store must be able to do."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cycleqd.errors import IntegrityError, OutageError, UnavailableError
from cycleqd.storage.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from cycleqd.storage.objects import Store

SHORTER = "{} is shorter than was listed: it is truncated or was replaced."


def connect_client(settings: Settings, attempts: int = 5) -> S3Client:
    """An S3 client. It is thread-safe; credentials come from boto3's own chain.

    A session of its own: boto3's shared one keeps the credentials that it found first, also for another store. What
    leads to credentials that expire is read now: they are renewed while the environment is without (see secrets).

    Args:
        settings: Endpoint and region.
        attempts: Most attempts of a request, the first included.
    """
    import boto3
    from botocore.config import Config
    from botocore.credentials import ContainerProvider
    from botocore.session import Session

    session = Session()
    chain = session.get_component("credential_provider")
    chain.insert_before(ContainerProvider.METHOD, ContainerProvider(dict(os.environ)))  # the chain's own reads later
    client = boto3.Session(botocore_session=session, region_name=settings.region).client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        config=Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
            s3={"addressing_style": "path"} if settings.endpoint else {},
        ),
    )
    _retry_cut_answers(client)
    return client


def _retry_cut_answers(client: S3Client) -> None:
    """Have botocore repeat a request whose answer was cut, too, where the answer is no object: an error, a listing.

    It reads such bodies without looking at their length, and those of errors outside what it retries. Objects' own
    bodies are read later (see bodies).
    """
    from botocore.exceptions import ConnectionClosedError
    from urllib3.exceptions import HTTPError

    session = client._endpoint.http_session  # type: ignore[attr-defined]

    def send(request: Any, **_: object) -> Any:
        answer = session.send(request)
        if answer.status_code < 300 and request.stream_output:
            return answer
        try:
            missing = int(answer.headers.get("Content-Length", 0)) - len(answer.content)
        except HTTPError as error:
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        if missing > 0 and request.method != "HEAD":
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=f"{missing} bytes are missing")
        return answer

    client.meta.events.register("before-send.s3", send)


@contextmanager
def reported(url: str, what: str) -> Iterator[None]:
    """Turn the failures of boto3, after its bounded retries, into one sentence that names the object.

    Args:
        url: s3:// URL of the object or folder.
        what: What cannot be done with it, a participle: "read", "written".

    Raises:
        IntegrityError: the block asked for bytes behind the object's end.
        OutageError: the store does not answer, or says that it cannot for now.
        UnavailableError: any other failure.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        if code(error) in ("InvalidRange", "416"):
            raise IntegrityError(SHORTER.format(url)) from error
        cut = isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)
        away = cut or _status(error) in (429, *range(500, 600))
        raise (OutageError if away else UnavailableError)(
            f"{url} cannot be {what} ({error});"
            " check AWS_ENDPOINT_URL, the credentials, the bucket and that the store is up"
        ) from error


def code(error: Exception) -> str:
    """S3's code of an error, "" where there is none.

    Args:
        error: An exception of boto3.
    """
    response: dict[str, dict[str, str]] = getattr(error, "response", None) or {}
    return response.get("Error", {}).get("Code", "")


def _status(error: Exception) -> int:
    """The HTTP status of an error, 0 where there is none."""
    response: dict[str, dict[str, int]] = getattr(error, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def probe(store: Store) -> None:
    """Check that the store refuses stale conditional writes, on which the evolution's safety rests.

    Writes and removes one small object.

    Args:
        store: Objects of any evolution in the bucket to check.

    Raises:
        UnavailableError: the store ignores If-None-Match or a stale If-Match.
    """
    key = f"probe-{secrets.token_hex(8)}.json"  # others may probe at the same time
    try:
        store.put(key, b"1")
        found = store.find_with_etag(key)
        stale = found[1] if found else ""
        ignored = []
        if store.create(key, b"2"):
            ignored.append("If-None-Match: *")
        store.put(key, b"3")
        if store.replace(key, b"4", stale):
            ignored.append("a stale If-Match")
        if ignored:
            raise UnavailableError(
                f"the S3 store at {store.client.meta.endpoint_url} ignores {' and '.join(ignored)} (it must"
                " answer 412): two processes could overwrite each other's archive; take a store with conditional writes"
            )
    finally:
        store.delete([key])
