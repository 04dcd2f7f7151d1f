"""What the client does where a store or the way to it fails: cut answers are asked for again, outages are named."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cycleqd.errors import IntegrityError, OutageError, UnavailableError
from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>m</Message></Error>"
LISTING = (
    b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>"
    b"<Contents><Key>e/a</Key><Size>3</Size></Contents></ListBucketResult>"
)


def answer(status: int, body: bytes, sent: int | None = None, chunked: bool = False) -> bytes:
    """An HTTP answer; `sent`: as many bytes of its body arrive before the connection ends."""
    head = b'HTTP/1.1 %d X\r\nETag: "1"\r\n' % status
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body[:sent]
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:sent]


@contextmanager
def scripted(environment: dict[str, str], *answers: bytes) -> Iterator[tuple[Store, list[bytes]]]:
    """A store that gives these answers, one a connection, and the requests that it has had."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        for given in answers:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(1 << 16)
                asked.append(request.split(b"\r\n", 1)[0])
                client.sendall(given)

    threading.Thread(target=serve, daemon=True).start()
    settings = Settings.from_environment(
        environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}
    )
    yield Store(connect_client(settings), "b", "e"), asked
    listener.close()


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with keys of nobody's; botocore's pauses are left out."""
    monkeypatch.setattr("botocore.retries.standard.time.sleep", lambda seconds: None, raising=False)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    return {"CYCLEQD_BUCKET": "b", "MLFLOW_TRACKING_URI": "x"}


CUT = ERROR % b"InternalError"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("sent", [0, 30])
def test_an_error_that_is_cut_is_asked_for_again(reach: dict[str, str], sent: int, chunked: bool) -> None:
    with scripted(reach, answer(500, CUT, sent, chunked), answer(404, ERROR % b"NoSuchKey", sent, chunked),
                  answer(200, b"found")) as (store, asked):  # fmt: skip
        assert store.find("key") == b"found"
        assert len(asked) == 3
    with scripted(reach, answer(404, ERROR % b"NoSuchKey")) as (store, _):
        assert store.find("key") is None


def test_a_listing_that_is_cut_is_asked_for_again(reach: dict[str, str]) -> None:
    with scripted(reach, answer(200, LISTING, 120), answer(200, LISTING)) as (store, asked):
        assert store.list("") == {"a": 3}
        assert len(asked) == 2


def test_answers_that_are_always_cut_are_an_outage_after_five(reach: dict[str, str]) -> None:
    with (
        scripted(reach, *[answer(500, CUT, 30, True)] * 9) as (store, asked),
        pytest.raises(OutageError, match=r"s3://b/e/key cannot be read"),
    ):
        store.find("key")
    assert len(asked) == 5


def nothing_listens(reach: dict[str, str]) -> None:
    Store(connect_client(Settings.from_environment(reach | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})), "b", "e").find(
        "k"
    )


def busy(reach: dict[str, str]) -> None:
    with scripted(reach, *[answer(503, ERROR % b"SlowDown")] * 5) as (store, _):
        store.put("k", b"x")


def forbidden(reach: dict[str, str]) -> None:
    with scripted(reach, answer(403, ERROR % b"AccessDenied")) as (store, _):
        store.find("k")


def no_bucket(reach: dict[str, str]) -> None:
    with scripted(reach, answer(404, ERROR % b"NoSuchBucket")) as (store, _):
        store.list("")


@pytest.mark.parametrize(("act", "kind"), [
    (nothing_listens, OutageError), (busy, OutageError), (forbidden, UnavailableError), (no_bucket, UnavailableError),
])  # fmt: skip
def test_only_what_passes_by_itself_is_an_outage(
    reach: dict[str, str], act: Callable[[dict[str, str]], None], kind: type[UnavailableError]
) -> None:
    with pytest.raises(UnavailableError) as refused:
        act(reach)
    assert type(refused.value) is kind and not isinstance(refused.value, IntegrityError)
