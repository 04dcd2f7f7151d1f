"""The submitter against a small HTTP server that answers as a Kubeflow Pipelines API server does (a real one is used in
tests/cluster). Runs go through scripted states, one a poll."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from cycleqd.errors import ConflictError, UnavailableError
from pipelines.kubeflow import KubeflowRunner
from pipelines.steps import Step, generation_step
from tests.pipelines.configs import two_tasks

STEP = Step("generation", 3, 1)


@dataclass
class Backend:
    """What the server holds: runs by id, the states that each is still to go through, and the calls it got."""

    scripts: list[list[str]]
    retried: list[str] = field(default_factory=lambda: ["FAILED", "RUNNING", "SUCCEEDED"])
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def create(self, name: str) -> dict[str, Any]:
        run = f"run-{len(self.runs)}"
        self.states[run] = self.scripts.pop(0)
        self.runs[run] = {"run_id": run, "display_name": name, "state": self.states[run][0]}
        return self.runs[run]

    def poll(self, run: str) -> dict[str, Any]:
        states = self.states[run]
        self.runs[run]["state"] = states.pop(0) if len(states) > 1 else states[0]
        return self.runs[run]


def handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def answer(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            url = urlparse(self.path)
            if found := re.fullmatch(r"/apis/v2beta1/runs/([^/]+)", url.path):
                return self.answer(backend.poll(found[1]))
            if url.path.endswith("/runs"):
                wanted = json.loads(parse_qs(url.query)["filter"][0])["predicates"][0]
                assert wanted["key"] == "display_name"
                same = [run for run in backend.runs.values() if run["display_name"] == wanted["stringValue"]]
                return self.answer({"runs": same})
            if url.path.endswith("/experiments"):
                return self.answer({"experiments": [{"experiment_id": "e", "display_name": "golden"}]})
            return self.answer({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
            backend.calls.append(self.path.rsplit("/", 1)[-1])
            if found := re.fullmatch(r"/apis/v2beta1/runs/([^/:]+):retry", self.path):
                backend.states[found[1]] = list(backend.retried)
                return self.answer({})
            if found := re.fullmatch(r"/apis/v2beta1/runs/([^/:]+):terminate", self.path):
                backend.states[found[1]] = ["CANCELED"]
                return self.answer({})
            return self.answer(backend.create(body["display_name"]))

    return Handler


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    state = Backend([])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield state
    server.shutdown()
    server.server_close()


def runner(retries: int = 1) -> KubeflowRunner:
    return KubeflowRunner(two_tasks(runner="kubeflow", retries=retries), lambda name, state: None, poll=0.01)


ARGUMENTS = {"evolution": "golden", "generation": 3, "place": "{}"}


def test_a_step_is_one_run_of_a_name_that_can_be_found_again(backend: Backend) -> None:
    backend.scripts = [["PENDING", "RUNNING", "SUCCEEDED"]]
    runner().run(STEP, ARGUMENTS)
    assert [run["display_name"] for run in backend.runs.values()] == ["golden-generation-000003"]
    assert runner().finished(STEP)
    assert not runner().finished(Step("generation", 4, 1))


def test_a_restarted_driver_joins_the_run_in_flight(backend: Backend) -> None:
    backend.scripts = [["RUNNING", "RUNNING", "SUCCEEDED"]]
    backend.create("golden-generation-000003")
    runner().run(STEP, ARGUMENTS)
    assert backend.calls == []


def test_a_failed_run_is_retried_in_place(backend: Backend) -> None:
    """Right after the call the old state is still read: that is not a second failure."""
    backend.scripts = [["RUNNING", "FAILED"]]
    runner().run(STEP, ARGUMENTS)
    assert backend.calls == ["runs", "run-0:retry"]


def test_retries_are_bounded(backend: Backend) -> None:
    backend.scripts, backend.retried = [["FAILED"]], ["RUNNING", "FAILED"]
    with pytest.raises(UnavailableError, match="failed 3 times"):
        runner(retries=2).run(STEP, ARGUMENTS)
    assert backend.calls == ["runs", "run-0:retry", "run-0:retry"]


def test_a_cancelled_run_ends_the_driver_and_is_replaced_by_the_next(backend: Backend) -> None:
    backend.scripts = [["RUNNING", "CANCELED"], ["SUCCEEDED"]]
    with pytest.raises(ConflictError, match="cancelled"):
        runner().run(STEP, ARGUMENTS)
    runner().run(STEP, ARGUMENTS)
    assert len(backend.runs) == 2


def test_a_cluster_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="KF_PIPELINES_ENDPOINT"):
        runner()


def test_runs_of_several_generations_start_at_the_same_places_after_any_restart() -> None:
    config = two_tasks(generations_per_run=500)
    assert generation_step(config, 0) == generation_step(config, 499) == Step("generation", 0, 500)
    assert generation_step(config, 1100) == Step("generation", 1000, 200)
    assert generation_step(config, 1100).name == "generations-001000-001199"
