"""What tests share: real S3 and MLflow servers for the session, tiny models, an evolution of its own each test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.shared.settings import Settings
from components.shared.store.objects import Store, connect_client
from tests.evolution import Evolution, write_models, write_tasks

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a SeaweedFS and an MLflow server that live as long as the session."""
    from cycleqd.config import Place
    from pipelines.services import running

    folder = tmp_path_factory.mktemp("services")
    with running(Place(services="embedded", folder=str(folder))) as environment:
        yield environment


@pytest.fixture
def environment(
    services: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of a stage, set for this test: a bucket of its own, a cache and a scratch folder."""
    bucket = f"test-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**12}"
    variables = {
        **services,
        "CYCLEQD_BUCKET": bucket,
        "CYCLEQD_CACHE": str(tmp_path / "cache"),
        "CYCLEQD_SCRATCH": str(tmp_path / "scratch"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    connect_client(Settings.from_environment(variables)).create_bucket(Bucket=bucket)
    return variables


@pytest.fixture
def store(environment: dict[str, str]) -> Store:
    """An empty evolution."""
    return Store.connect(Settings.from_environment(environment), "empty")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer base and experts a, b and c: the base with noise of their own."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of three cheap tasks and the plug-in that judges them."""
    return write_tasks(tmp_path_factory.mktemp("tasks"), DATA / "letters.py")


@pytest.fixture
def evolution(
    environment: dict[str, str], tiny_models: Path, tiny_tasks: Path, request: pytest.FixtureRequest
) -> Callable[..., Evolution]:
    """evolution(name, **changes of the configuration's sections) → an Evolution whose stages can be called."""

    def make(name: str = "evo", **changes: object) -> Evolution:
        unique = f"{name}-{environment['CYCLEQD_BUCKET']}"
        return Evolution.make(unique, tiny_models, tiny_tasks, json.loads(json.dumps(changes)))

    return make
