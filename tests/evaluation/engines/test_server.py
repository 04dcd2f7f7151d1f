"""The server engine against a small fake of vLLM's server: what it sends, what it sends again, what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import EvaluationError, InvalidInputError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Sampling, server
from cycleqd.evaluation.engines.common import checkpoint
from cycleqd.evaluation.engines.server import ServerEngine
from tests.evaluation.engines.test_engines import QUESTIONS, ask, want

MakeModel = Callable[..., Path]
ADAPTER = Adapter("d" * 64, Path(), "evolution/g000001-c00")


class Fake(ThreadingHTTPServer):
    """Answers every prompt with "ok"; `faults` are what it does instead, a request each, the first one next."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.faults: list[int | str] = []
        self.base, self.changed = "base", True
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        if "logprobs" in body:
            shift = 0.25 if self.changed and body["model"] != self.base else 0.0
            shown = {"token_id:5": -0.5 - shift, "token_id:6": -1.5}
            return {"choices": [{"logprobs": {"top_logprobs": [shown]}} for _ in body["prompt"]]}
        choice = {"token_ids": [81, 77, 2], "finish_reason": "stop"}
        return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        cards = [{"id": self.server.base, "max_model_len": 128}, {"id": "x", "parent": "base", "max_model_len": 1}]
        answers = {"/health": None, "/version": {"version": "1.2"}, "/v1/models": {"data": cards}}
        self.send(200, answers[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else 200
            self.server.asked.append(body)
            self.server.headers.append(self.headers["Authorization"])
        if fault == "cut":
            self.close_connection = True
            return
        refusal = {"error": {"message": "no such thing", "code": fault}}
        self.send(int(fault), self.server.completion(body) if fault == 200 else refusal)

    def send(self, status: int, value: Any) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as made:
        yield made
        made.shutdown()


@pytest.fixture
def engine(fake: Fake, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerEngine]:
    monkeypatch.setattr(server, "PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("CYCLEQD_SERVER_KEY", "k3y")
    made = ServerEngine(engines.EngineSettings(max_context=100, server=fake.url))
    made.load(make_model(0), "base")
    made.adapt([ADAPTER])
    yield made
    made.close()


def test_prompts_are_the_models_own_and_go_as_tokens(engine: ServerEngine, fake: Fake, make_model: MakeModel) -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, stop=("#",), seed=3)
    replies = engine.generate(want(QUESTIONS, sampling))
    prompts = checkpoint.ModelFolder.open(make_model(0), None).encode(QUESTIONS)
    asked = {json.dumps(body["prompt"]): body for body in fake.asked}
    assert set(asked) == {json.dumps(prompt) for prompt in prompts}
    first = asked[json.dumps(prompts[0])]
    assert first.pop("seed") != asked[json.dumps(prompts[1])]["seed"]
    assert first == {
        "model": "base", "prompt": prompts[0], "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["#"],
        "stop_token_ids": [2], "return_token_ids": True,
    }  # fmt: skip
    assert {(r.text, r.finish, r.tokens) for r in replies} == {("ok", "stop", 3)}
    assert set(fake.headers) == {"Bearer k3y"}
    assert engine.version == "vllm 1.2 at a server" and not engine.reproducible


def test_a_prompt_that_fills_the_context_is_not_sent(engine: ServerEngine, fake: Fake) -> None:
    short, long = engine.generate(want(ask("hello", "n" * 100), Sampling(max_tokens=200)))
    assert (short.finish, long.finish, long.text) == ("stop", "overflow", "")
    assert [body["max_tokens"] + len(body["prompt"]) for body in fake.asked] == [100]


def test_an_adapter_is_named_by_where_it_is_and_proved_once(engine: ServerEngine, fake: Fake) -> None:
    for _ in range(2):
        engine.generate(want(QUESTIONS, Sampling(max_tokens=4), ADAPTER.digest))
    names = [body["model"] for body in fake.asked]
    assert names.count("base") == 2  # the proof's
    assert set(names) == {"base", f"evolution/g000001-c00/{'d' * 64}"}
    with pytest.raises(EvaluationError, match="there is no adapter"):
        engine.generate(want(QUESTIONS, Sampling(max_tokens=4), "e" * 64))


def test_an_adapter_that_is_not_in_force_is_never_scored(engine: ServerEngine, fake: Fake) -> None:
    fake.changed = False
    with pytest.raises(EvaluationError, match="gives the base's probabilities for it"):
        engine.generate(want(QUESTIONS, Sampling(max_tokens=4), ADAPTER.digest))
    assert all("logprobs" in body for body in fake.asked)


@pytest.mark.parametrize("fault", [500, 502, 503, "cut"])
def test_what_was_lost_is_asked_again(engine: ServerEngine, fake: Fake, fault: int | str) -> None:
    fake.faults = [fault, fault, 200, fault]
    replies = engine.generate(want(QUESTIONS, Sampling(max_tokens=4)))
    assert [reply.text for reply in replies] == ["ok"] * len(QUESTIONS)
    assert len(fake.asked) == len(QUESTIONS) + 3


def test_after_a_restart_adapters_are_proved_again_before_anything_is_given_back(
    engine: ServerEngine, fake: Fake
) -> None:
    rows = want(QUESTIONS, Sampling(max_tokens=4), ADAPTER.digest)
    engine.generate(rows)
    fake.faults, fake.changed = [503], False
    with pytest.raises(EvaluationError, match="gives the base's probabilities for it"):
        engine.generate(rows)


def test_a_request_that_is_lost_again_and_again_is_an_error(engine: ServerEngine, fake: Fake) -> None:
    fake.faults = [503] * 100
    with pytest.raises(EvaluationError, match="ready again after each of 4 times that a request was lost"):
        engine.generate(want(QUESTIONS[:1], Sampling(max_tokens=4)))
    assert len(fake.asked) == 4


def test_a_refusal_is_not_repeated(engine: ServerEngine, fake: Fake) -> None:
    fake.faults = [400]
    with pytest.raises(EvaluationError, match=r"refuses \(400\): no such thing"):
        engine.generate(want(QUESTIONS[:1], Sampling(max_tokens=4)))
    fake.faults = [401]
    with pytest.raises(EvaluationError, match="does not take the key in CYCLEQD_SERVER_KEY") as found:
        engine.generate(want(QUESTIONS[:1], Sampling(max_tokens=4)))
    assert "k3y" not in str(found.value)
    assert len(fake.asked) == 2


def test_a_server_restarted_with_another_base_is_refused(engine: ServerEngine, fake: Fake) -> None:
    fake.base, fake.faults = "other", [503]
    with pytest.raises(EvaluationError, match="serves other, and base is wanted"):
        engine.generate(want(QUESTIONS, Sampling(max_tokens=4)))


def test_a_server_that_stays_away_is_given_up(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(server, "RESTART_SECONDS", 0.1)
    with Fake() as gone:
        gone.shutdown()
    engine = ServerEngine(engines.EngineSettings(server=gone.url))
    with pytest.raises(EvaluationError, match="has not been ready for 0 minutes"):
        engine.load(make_model(0), "base")


def test_without_an_address_there_is_no_engine() -> None:
    with pytest.raises(InvalidInputError, match=r"place\.server\.url does not say where it is"):
        engines.create("server", engines.EngineSettings())
