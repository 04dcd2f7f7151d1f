"""MLflow behind a proxy that wants a token, or a user and a password."""

from __future__ import annotations

import base64
import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cycleqd.errors import UnavailableError
from cycleqd.run.checks import tracking_silence
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tracker import Tracker

NAMES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
GIVEN = {
    "Bearer do-not-leak": {"MLFLOW_TRACKING_TOKEN": "do-not-leak"},
    f"Basic {base64.b64encode(b'me:do-not-leak').decode()}": {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "do-not-leak",
    },
}


@contextlib.contextmanager
def guarded(server: str, authorization: str) -> Iterator[str]:
    """The address of a proxy that passes on what shows this."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, found = 401, b"who are you?"
            if self.headers["Authorization"] == authorization:
                kind = {"Content-Type": self.headers["Content-Type"] or "application/json"}
                asked = urllib.request.Request(server + self.path, body or None, kind, method=self.command)
                try:
                    with urllib.request.urlopen(asked, timeout=30) as answer:
                        status, found = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, found = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        do_POST = do_GET

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize("authorization", GIVEN)
def test_credentials_of_the_environment_open_the_server_and_are_in_no_message(
    authorization: str, store: Store, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with guarded(environment["MLFLOW_TRACKING_URI"], authorization) as url:
        evolution = Store(store.client, store.bucket, store.bucket)  # a name of its own
        tracker = Tracker(Settings.from_environment({**environment, "MLFLOW_TRACKING_URI": url}))
        with pytest.raises(UnavailableError, match="401"):
            tracker.experiment(evolution, "")
        assert "401" in (tracking_silence(url, 10) or "")
        for name, value in GIVEN[authorization].items():
            monkeypatch.setenv(name, value)
        assert tracking_silence(url, 10) is None
        assert tracker.experiment(evolution, "")
        monkeypatch.setenv(next(iter(GIVEN[authorization])), "do-not-leak-either")
        with pytest.raises(UnavailableError, match="401") as refused:
            tracker.experiment(evolution, "")
        assert "do-not-leak" not in str(refused.value) and "do-not-leak" not in (tracking_silence(url, 10) or "")
