"""Inference over HTTP with a vLLM server that stays up between tasks: `cycleqd serve`, or the manifests' Deployment.

The server has the base in memory under its digest and makes adapters itself, from their cores in S3. Prompts are made
here, by the model's own chat template, so that they are what the other engines make. A server that restarts is waited
for, and what it did not answer is asked again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cycleqd.errors import EvaluationError, InvalidInputError
from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Progress, Request
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.secrets import credential

IN_FLIGHT = 256  # requests; a server has many clients
CONNECT_SECONDS = 10.0
REPLY_SECONDS = 900.0  # in the server's queue, plus a second for each token that the reply may have
RESTART_SECONDS = 1800.0  # until a server that is down is given up: reading and compiling a large model
PAUSE_SECONDS = 2.0
ATTEMPTS = 4  # of a request, each when the server is ready
GONE = (500, 502, 503, 504)  # 500 is what vLLM answers when its engine has died, before it ends

PROBES = ("Hello.", "What is 2 + 2?", "List the files in /tmp.", "SELECT name FROM users WHERE")
SHOWN = 5  # probabilities of each probe's next token


class ServerEngine(Engine):
    """Many requests in flight; adapters share the server's batches."""

    name = "server"
    mixes = True
    remote = True

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        if not settings.server:
            raise InvalidInputError("evaluation.engine is server, but place.server.url does not say where it is")
        self._server = Connection(settings.server, credential("CYCLEQD_SERVER_KEY"))
        self._adapters: dict[str, Adapter] = {}
        self._proved: set[str] = set()
        self._checkpoint: ModelFolder | None = None
        self._digest, self._version, self._context = "", "", 0
        self._starts, self._lock = 0, threading.Lock()

    @property
    def reproducible(self) -> bool:
        """Batches depend on timing, and on other clients."""
        return False

    @property
    def version(self) -> str:
        """What the server says of itself, for run.json."""
        return f"vllm {self._version} at a server"

    def load(self, folder: Path, digest: str) -> None:
        """Raises EvaluationError when the server has another base. `folder` needs no weights."""
        if digest == self._digest:
            return
        self._digest = ""
        self._checkpoint = ModelFolder.open(folder, self.settings.max_context)
        self._context = min(self._checkpoint.context, self._ready(digest))
        self._digest = digest
        self._proved.clear()

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """The server finds them when they are asked for."""
        self._adapters = {adapter.digest: adapter for adapter in adapters}
        self._proved &= self._adapters.keys()

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """Raises EvaluationError for what the server refuses, and when it does not come back."""
        if self._checkpoint is None or not self._digest:
            raise EvaluationError("the server engine has no model; load one before generating")
        prompts = self._checkpoint.encode([r.conversation for r in requests], [r.chat for r in requests])
        done: dict[int, Completion] = {}
        wanted = {request.adapter for request in requests if request.adapter}
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="server") as pool:
            try:
                self._prove(wanted, pool)
                asked = {
                    pool.submit(self._reply, prompt, request): i
                    for i, (prompt, request) in enumerate(zip(prompts, requests, strict=True))
                }
                for reply in as_completed(asked):
                    done[asked[reply]] = reply.result()
                    if progress:
                        progress(1)
                self._prove(wanted, pool)  # again what a server that restarted in the meantime has loaded
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [done[i] for i in range(len(prompts))]

    def close(self) -> None:
        """Connections only: the server stays."""
        self._server.close()

    def _reply(self, prompt: Sequence[int], request: Request) -> Completion:
        assert self._checkpoint is not None
        sampling = request.sampling
        room = min(sampling.max_tokens, self._context - len(prompt))
        if room < 1:
            return Completion("", "overflow", len(prompt), 0)
        unique = hashlib.sha256(json.dumps([sampling.seed, prompt]).encode()).digest()
        body = {
            "model": self._named(request.adapter),
            "prompt": list(prompt),
            "max_tokens": room,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop),
            "stop_token_ids": list(self._checkpoint.end_tokens),
            "seed": int.from_bytes(unique[:4], "big"),
            "return_token_ids": True,
        }
        (choice,) = self._asked(body, REPLY_SECONDS + room)["choices"]
        return Completion(
            text=self._checkpoint.decode(choice["token_ids"], sampling.stop),
            finish="length" if choice["finish_reason"] == "length" else "stop",
            prompt_tokens=len(prompt),
            tokens=len(choice["token_ids"]),
        )

    def _named(self, adapter: str | None) -> str:
        """The model's name at the server."""
        if adapter is None:
            return self._digest
        if adapter not in self._adapters:
            raise EvaluationError(f"there is no adapter {adapter}; make it known before generating with it")
        return f"{self._adapters[adapter].origin}/{adapter}"

    def _asked(self, body: Mapping[str, Any], seconds: float) -> Any:
        """The answer to a request for completions; asked again, when the server is ready, if it was lost."""
        for _ in range(ATTEMPTS):
            starts = self._starts
            try:
                return self._server.post("/v1/completions", body, seconds)
            except Lost as error:
                lost = error
                self._wait(starts)
        raise EvaluationError(
            f"{self._server.url} was ready again after each of {ATTEMPTS} times that a request was lost ({lost}); its"
            " log has the cause"
        )

    def _wait(self, starts: int) -> None:
        """Wait until the server is ready, whichever thread notices first; no adapter is proved then."""
        with self._lock:
            if self._starts == starts:
                self._ready(self._digest)
                self._proved.clear()
                self._starts += 1

    def _ready(self, digest: str) -> int:
        """Wait until the server serves a base; its context in tokens."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                self._server.get("/health")
                self._version = self._server.get("/version")["version"]
                served = [model for model in self._server.get("/v1/models")["data"] if not model.get("parent")]
                break
            except Lost as error:
                if time.monotonic() > deadline:
                    raise EvaluationError(
                        f"{self._server.url} has not been ready for {RESTART_SECONDS / 60:.0f} minutes ({error}); start"
                        " it, or look into its log"
                    ) from error
                time.sleep(PAUSE_SECONDS)
        for model in served:
            if model["id"] == digest:
                return int(model["max_model_len"])
        raise EvaluationError(
            f"{self._server.url} serves {', '.join(model['id'] for model in served)}, and {digest} is wanted: it can"
            " score adapters of the base that it was started with (cycleqd serve), no other checkpoints"
        )

    def _prove(self, adapters: Set[str], pool: ThreadPoolExecutor) -> None:
        while missing := sorted(adapters - self._proved):
            starts = self._starts
            for proof in as_completed([pool.submit(self._differs, adapter) for adapter in missing]):
                proof.result()
            with self._lock:
                if self._starts == starts:
                    self._proved.update(missing)

    def _differs(self, adapter: str) -> None:
        """Raise EvaluationError unless an adapter changes what is likely to follow a few fixed prompts.

        vLLM serves the base, without an error, for an adapter whose tensors' names mean nothing to it. In busy batches
        the base differs from itself by rounding: an adapter must differ by more.
        """
        base, again = self._likely(self._digest), self._likely(self._digest)
        if _distance(base, self._likely(self._named(adapter))) <= _distance(base, again):
            raise EvaluationError(
                f"{self._named(adapter)}: {self._server.url} gives the base's probabilities for it, so it is not in"
                " force and was not scored; use the vllm engine, which compares weights"
            )

    def _likely(self, model: str) -> list[dict[str, float]]:
        """The logarithms of the probabilities of each probe's likeliest next tokens."""
        assert self._checkpoint is not None
        prompts = self._checkpoint.encode([[{"role": "user", "content": probe}] for probe in PROBES])
        body = {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": SHOWN}
        body["return_tokens_as_token_ids"] = True
        return [choice["logprobs"]["top_logprobs"][0] for choice in self._asked(body, REPLY_SECONDS)["choices"]]


def _distance(some: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> float:
    """The largest difference between two answers to the probes; infinite where another token is likely."""
    differences = [0.0]
    for one, other in zip(some, others, strict=True):
        differences += [abs(one[token] - other[token]) for token in one.keys() & other.keys()]
        if not one.keys() & other.keys():
            return float("inf")
    return max(differences)


class Lost(Exception):
    """A request that was not answered, or by a server that is not ready: it may be asked again."""


class Connection:
    """JSON over HTTP. The key is in the requests' headers only."""

    def __init__(self, url: str, key: str | None) -> None:
        import urllib3

        self.url = url
        self._http = urllib3.PoolManager(
            maxsize=IN_FLIGHT,
            block=False,
            retries=False,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def get(self, path: str) -> Any:
        """The answer at a path; None when it is empty.

        Args:
            path: With its leading slash.

        Raises:
            Lost: The server is not ready.
            EvaluationError: It refuses.
        """
        return self._request("GET", path, None, 30.0)

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> Any:
        """The answer to a body.

        Args:
            path: With its leading slash.
            body: JSON.
            seconds: How long to wait for the answer.

        Raises:
            Lost: The server is not ready, or went away, or did not answer in time.
            EvaluationError: It refuses.
        """
        return self._request("POST", path, body, seconds)

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, TimeoutError

        timeout = Timeout(connect=CONNECT_SECONDS, read=seconds)
        try:
            answer = self._http.request(method, self.url + path, json=body, timeout=timeout, redirect=False)
        except (NewConnectionError, ProtocolError, TimeoutError) as error:
            raise Lost(str(error)) from error
        except HTTPError as error:
            raise EvaluationError(f"{self.url} cannot be reached ({error}); check place.server.url") from error
        if answer.status == 401:
            raise EvaluationError(
                f"{self.url} does not take the key in CYCLEQD_SERVER_KEY (Secret place.server.secret)"
            )
        try:
            found = answer.json() if answer.data else None
        except ValueError:
            found = answer.data[:300]
        if answer.status != 200:
            refusal = found.get("error", found) if isinstance(found, dict) else found
            detail = refusal.get("message", refusal) if isinstance(refusal, dict) else refusal
            if answer.status in GONE:
                raise Lost(f"{answer.status}: {detail}")
            raise EvaluationError(f"{self.url}{path} refuses ({answer.status}): {detail}")
        return found
