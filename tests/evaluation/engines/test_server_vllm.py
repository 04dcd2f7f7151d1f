"""`cycleqd serve` on a tiny evolution in the span: vLLM's server, our resolver in it, and the engine that asks it.

One start serves the file, and another the test in which it is killed (about half a minute each on two cores).
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Sampling
from cycleqd.evaluation.engines.server import ServerEngine
from cycleqd.run.local.services import running
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.adapters import adapter_folders
from cycleqd.storage.client import connect_client
from cycleqd.storage.cores import load_core, save_core
from cycleqd.storage.evolution import manifest, model_ref
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from tests.evaluation.engines.test_engines import QUESTIONS, want
from tests.evolution import EXPERTS, Evolution, write_adapters

MakeModel = Callable[..., Path]
NEEDED = ("vllm", "watchfiles", "prometheus_fastapi_instrumentator", "model_hosting_container_standards")
KEY = "a-key-of-the-tests"
GREEDY = Sampling(max_tokens=16)
pytestmark = pytest.mark.timeout(1800)
CHILD, ZERO, BROKEN = "g000000-c00", "g000000-c01", "g000000-c02"


@dataclass
class Server:
    """`cycleqd serve` as a process."""

    config: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    arguments: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "cycleqd.cli", "serve", "-c", str(self.config), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        began = time.monotonic()
        while b"ready: http" not in self.log.read_bytes():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() - began > 600:
                pytest.fail(f"the server did not start: {self.log.read_text()[-6000:]}")
            time.sleep(0.5)

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def vllm(self) -> int:
        """The server's process inside."""
        assert self.process is not None
        text = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True).stdout
        return int(text.split()[0])


@pytest.fixture(scope="module")
def world(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory, tiny_tasks: Path) -> Iterator[Evolution]:
    """An evolution with LoRA experts of a base that vLLM takes, and children of its basis. S3, and no MLflow."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("models", "adapters"):
        (folder / name).mkdir()
    (folder / "models" / "base").symlink_to(make_model(0))
    adapters = write_adapters(folder / "models", folder / "adapters")
    place = Place(services="embedded", folder=str(folder / "services"))
    with pytest.MonkeyPatch.context() as patch, running(place, tracking=False) as services:
        patch.setattr(unlogged, "catch_up", lambda *given: None)
        bucket = f"test-{secrets.token_hex(8)}"
        own = {"CYCLEQD_BUCKET": bucket, "CYCLEQD_CACHE": str(folder / "cache"), "CYCLEQD_SCRATCH": str(folder)}
        for name, value in {**services, **own, "CYCLEQD_SERVER_KEY": KEY}.items():
            patch.setenv(name, value)
        client = connect_client(Settings.from_environment())
        client.create_bucket(Bucket=bucket)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        experts = {name: {"path": str(adapters / name)} for name in EXPERTS}
        changes = {
            "models": {"experts": experts},
            "evaluation": {"engine": "server", "max_context": 200},
            "place": {"bucket": bucket, "server": {"url": f"http://127.0.0.1:{port}"}},
        }
        made = Evolution.make("served", folder / "models", tiny_tasks, changes)
        made.seed()
        made.basis()
        store = made.store
        core = load_core(store, model_ref(store, "expert-a"))
        first = next(iter(core.matrices))
        children = {
            CHILD: core.like({name: -0.5 * matrix for name, matrix in core.matrices.items()}),
            ZERO: core.like({name: torch.zeros_like(matrix) for name, matrix in core.matrices.items()}),
        }
        broken = {**core.matrices, first: torch.full_like(core.matrices[first], torch.inf)}
        children[BROKEN] = type(core)(core.base, core.basis, broken)
        for name, child in children.items():
            DIGESTS[name] = save_core(store, child).digest
        for name in EXPERTS:
            DIGESTS[f"expert-{name}"] = manifest(store, f"expert-{name}").digest
        yield made
        client.delete_bucket(Bucket=bucket)


DIGESTS: dict[str, str] = {}


@pytest.fixture(scope="module")
def server(world: Evolution, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing} are not installed: pip install --no-deps -r requirements/no-deps-dev.txt")
    if "cycleqd" not in entry_points(group="vllm.general_plugins").names:
        pytest.skip("cycleqd was installed before it had a plug-in for vLLM: pip install --no-deps -e .")
    folder = tmp_path_factory.mktemp("server")
    (folder / "cycleqd.yaml").write_text(yaml.safe_dump(json.loads(world.config.model_dump_json(by_alias=True))))
    found = Server(folder / "cycleqd.yaml", int(world.config.place.server.url.rpartition(":")[2]), folder / "log")
    found.start()
    try:
        found.wait()
        yield found
    finally:
        found.end()


@pytest.fixture
def engine(server: Server, world: Evolution) -> Iterator[ServerEngine]:
    found = ServerEngine(engines.EngineSettings(max_context=200, server=server.url))
    found.adapt([Adapter(digest, Path(), f"{world.name}/{model}") for model, digest in DIGESTS.items()])
    yield found
    found.close()


@pytest.fixture
def loaded(engine: ServerEngine, make_model: MakeModel, world: Evolution) -> ServerEngine:
    engine.load(make_model(0), model_ref(world.store, "base").digest)
    return engine


def test_adapters_and_the_base_in_one_call_give_the_tokens_of_the_transformers_engine(
    loaded: ServerEngine, world: Evolution, make_model: MakeModel, tmp_path: Path
) -> None:
    """Which the vLLM engine gives, too: see test_vllm."""
    models = ["expert-a", "expert-b", "expert-c"]
    plain = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, max_context=200))
    recorded = {model: manifest(world.store, model) for model in models}
    with adapter_folders(world.store, Place(), recorded, "float32", tmp_path) as folders:
        plain.adapt([Adapter(DIGESTS[model], folder) for model, folder in folders.items()])
        plain.load(make_model(0), "0")
        rows = [r for model in [*models, None] for r in want(QUESTIONS, GREEDY, DIGESTS[model] if model else None)]
        expected = plain.generate(rows)
    seen: list[int] = []
    assert loaded.generate(rows, seen.append) == expected
    assert sum(seen) == len(rows)
    assert loaded.generate(rows[::-1]) == expected[::-1]
    assert len({str(expected[i : i + len(QUESTIONS)]) for i in range(0, len(rows), len(QUESTIONS))}) == 4


def test_a_core_that_changes_nothing_is_seen(loaded: ServerEngine) -> None:
    with pytest.raises(EvaluationError, match="gives the base's probabilities for it, so it is not in force"):
        loaded.generate(want(QUESTIONS, GREEDY, DIGESTS[ZERO]))


def test_another_base_is_refused_in_one_sentence(engine: ServerEngine, make_model: MakeModel) -> None:
    with pytest.raises(EvaluationError, match=r"serves [0-9a-f]{64}, and another is wanted: it can score adapters"):
        engine.load(make_model(0), "another")


@pytest.mark.parametrize(
    ("origin", "digest", "sentence"),
    [
        ("served/expert-a", "0" * 64, "is not there: it was cleaned up"),
        ("served/g000000-c99", "0" * 64, "is not there"),
        ("other/expert-a", "0" * 64, "is not there"),
        ("../expert-a", "0" * 64, "names no adapter; names are EVOLUTION/MODEL/DIGEST"),
        ("served/../../expert-a", "0" * 64, "names no adapter"),
        ("served/..", "0" * 64, "is not a model id"),
        ("served/expert-a", "../../etc", "names no adapter"),
        ("served/expert-a", "é" * 64, "names no adapter"),
        (f"served/{BROKEN}", "", "holds NaN or Inf"),
    ],
)
def test_hostile_names_and_broken_cores_are_refused_and_the_server_lives_on(
    loaded: ServerEngine, origin: str, digest: str, sentence: str
) -> None:
    digest = digest or DIGESTS[BROKEN]
    loaded.adapt([Adapter(digest, Path(), origin)])
    with pytest.raises(EvaluationError, match=sentence):
        loaded.generate(want(QUESTIONS, GREEDY, digest))
    loaded.adapt([Adapter(DIGESTS[CHILD], Path(), f"served/{CHILD}")])
    assert len(loaded.generate(want(QUESTIONS, GREEDY, DIGESTS[CHILD]))) == len(QUESTIONS)


def test_vllms_own_ways_to_load_adapters_are_closed_and_a_key_is_needed(
    loaded: ServerEngine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"lora_name": "x", "lora_path": "/etc"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        with pytest.raises(EvaluationError, match=r"refuses .404."):
            loaded._server.post(path, body, 10)
    monkeypatch.setenv("CYCLEQD_SERVER_KEY", "wrong")
    stranger = ServerEngine(engines.EngineSettings(server=server.url))
    with pytest.raises(EvaluationError, match="does not take the key in CYCLEQD_SERVER_KEY"):
        stranger.load(loaded._checkpoint.folder, "x")  # type: ignore[union-attr]
    assert KEY not in server.log.read_text()


def test_the_evaluate_stage_scores_with_it(server: Server, world: Evolution) -> None:
    world.evaluate(["base", "expert-a"])
    body = world.store.get_json(layout.result(layout.evaluation("expert-a", "one", "search")))
    assert body["outputs"]["engine"] == "server"


def test_what_a_server_that_restarts_did_not_answer_is_asked_again(
    loaded: ServerEngine, server: Server, world: Evolution
) -> None:
    """The last test of the file: it kills the server in the middle of a call."""
    rows = want(QUESTIONS * 40, Sampling(max_tokens=60), DIGESTS["expert-b"])
    expected = loaded.generate(rows)
    seen = threading.Semaphore(0)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(loaded.generate(rows, lambda n: seen.release())))
    asking.start()
    seen.acquire()
    assert server.process is not None
    os.killpg(os.getpgid(server.vllm()), signal.SIGKILL)
    assert server.process.wait(60) == 5
    assert asking.is_alive()
    server.log.unlink()
    server.start()
    asking.join(900)
    assert found == [expected]
    server.wait()
    assert server.end() == 0
