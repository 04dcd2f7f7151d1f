"""What tests share: real S3 and MLflow servers for the session, tiny models, an evolution of its own each test."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.evolution import Evolution, write_models, write_tasks

# The same examples at every run: what fails was broken by the change. `pytest --hypothesis-profile=default` explores.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a SeaweedFS and an MLflow server that live as long as the session."""
    from cycleqd.run.local.services import running
    from cycleqd.search.place import Place

    folder = tmp_path_factory.mktemp("services")
    with running(Place(services="embedded", folder=str(folder))) as environment:
        yield environment


def new_bucket(services: dict[str, str], folder: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a stage, set: a new bucket, a cache and a scratch folder of its own."""
    bucket = f"test-{secrets.token_hex(8)}"
    own = {"CYCLEQD_BUCKET": bucket, "CYCLEQD_CACHE": str(folder / "cache"), "CYCLEQD_SCRATCH": str(folder / "scratch")}
    variables = {**services, **own}
    for name, value in variables.items():
        patch.setenv(name, value)
    connect_client(Settings.from_environment(variables)).create_bucket(Bucket=bucket)
    return variables


@pytest.fixture
def environment(services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a stage, set for this test, with a bucket of its own that goes with it."""
    variables = new_bucket(services, tmp_path, monkeypatch)
    client = connect_client(Settings.from_environment(variables))
    yield variables
    client.delete_bucket(Bucket=variables["CYCLEQD_BUCKET"])  # SeaweedFS deletes what is in it, and frees its volumes


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
def evolution(environment: dict[str, str], tiny_models: Path, tiny_tasks: Path) -> Callable[..., Evolution]:
    """evolution(name, **changes of the configuration's sections) → an Evolution whose stages can be called."""

    def make(name: str = "evo", **changes: object) -> Evolution:
        unique = f"{name}-{environment['CYCLEQD_BUCKET']}"
        return Evolution.make(unique, tiny_models, tiny_tasks, json.loads(json.dumps(changes)))

    return make


def reached(shared: tuple[dict[str, str], Evolution], folder: Path, patch: pytest.MonkeyPatch) -> Evolution:
    """An evolution that tests share, in its bucket, with a cache of this test's own."""
    variables, made = shared
    for name, value in {**variables, "CYCLEQD_CACHE": str(folder / "cache")}.items():
        patch.setenv(name, value)
    return made


@pytest.fixture(scope="session")
def _grown(
    services: dict[str, str], tiny_models: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Evolution]:
    with pytest.MonkeyPatch.context() as patch:
        variables = new_bucket(services, tmp_path_factory.mktemp("grown"), patch)
        changes = {"seed": 3, "method": {"generations": 3, "children": 2, "grid": {"bins": 2}}}
        made = Evolution.make(f"grown-{variables['CYCLEQD_BUCKET']}", tiny_models, tiny_tasks, changes)
        made.seeding()
        for _ in range(3):
            made.generation()
        made.finalising()
    return variables, made


@pytest.fixture
def grown(_grown: tuple[dict[str, str], Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evolution:
    """A finished evolution of three generations, shared by all tests of the session: leave it as it is found."""
    return reached(_grown, tmp_path, monkeypatch)
