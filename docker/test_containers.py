"""An evolution with a container a task, against the same evolution in processes.

docker/test runs this: it builds the images, named $CYCLEQD_IMAGES/IMAGE:VERSION, and starts a Podman service with
Docker's interface at $DOCKER_HOST.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from common import IMAGES, ROOT, VERSION, image_name, make, output

from cycleqd.cli.session import connect
from cycleqd.run.local.services import running
from cycleqd.search.config import load
from cycleqd.storage.objects import Store

pytestmark = pytest.mark.timeout(1800)

_OWN = ("run.json", "mlflow.json")  # tell of times, machines and MLflow's ids
_OURS = ("AWS_", "MLFLOW_", "CYCLEQD_")


@dataclass(frozen=True)
class Grown:
    """What an evolution left: objects in S3 by key, and the logs of its pipelines."""

    objects: dict[str, bytes]
    logs: str

    def json(self, key: str) -> Any:
        return json.loads(self.objects[key])


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("processes"), "local")


@pytest.fixture(scope="module")
def in_containers(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("containers"), "docker")


def test_containers_and_processes_give_the_same_bytes(in_processes: Grown, in_containers: Grown) -> None:
    compare(in_processes, in_containers)


def test_in_the_span_too(tmp_path: Path) -> None:
    in_processes = grow(tmp_path / "processes", "local", rank=4)
    in_containers = grow(tmp_path / "containers", "docker", rank=4)
    compare(in_processes, in_containers)
    images = {
        "models/basis/make/run.json": "evaluate",  # it compares each adapter with peft
        "generations/000001/children/g000001-c01/merge/run.json": "weights",
        "generations/000001/children/g000001-c01/mutate/run.json": "weights",
        "models/source-red/evaluations/one/search/run.json": "evaluate",
        "models/final/make/run.json": "weights",
    }
    ran_in(images, in_containers)
    assert [key for key in in_containers.objects if key.endswith("final/adapter/adapter_model.safetensors")]


def test_every_task_ran_in_the_image_of_its_stage(in_containers: Grown) -> None:
    images = {
        "seed/run.json": "control",
        "generations/000001/update/run.json": "control",
        "generations/000001/children/g000001-c00/merge/run.json": "weights",
        "generations/000001/children/g000001-c01/mutate/run.json": "weights",
        "generations/000001/children/g000001-c01/evaluations/one/search/run.json": "evaluate",
        "models/final/make/run.json": "weights",
        "models/final/evaluations/two/test/run.json": "evaluate",
    }
    ran_in(images, in_containers)
    used = set(re.findall(r"container \w+ of image (\S+)", in_containers.logs))
    assert used == {image_name(image) for image in IMAGES}


def test_answers_were_judged_by_the_real_judges(in_containers: Grown) -> None:
    """A box that does not open or a server that does not start would have stopped the stage; a score needs both."""
    for task in ("one", "two"):
        records = [v for k, v in in_containers.objects.items() if f"/evaluations/{task}/" in k and "result" in k]
        scores = [json.loads(record)["outputs"]["score"] for record in records]
        assert 0 < max(scores) <= 1 and min(scores) < max(scores), (task, scores)


@pytest.mark.parametrize(("entry", "code"), [("/bin/false", 1), ("/bin/true", 0)])
def test_a_container_that_dies_at_once_is_no_success(tmp_path: Path, entry: str, code: int) -> None:
    """Also one whose exit code says so: a task returns something."""
    dead = f"{os.environ['CYCLEQD_IMAGES']}/dead:{VERSION}"
    container = output("buildah", "from", image_name("control"))
    try:
        output("buildah", "config", "--entrypoint", json.dumps([entry]), container)
        output("buildah", "commit", "--quiet", container, dead)
        path = make(tmp_path, images=dict.fromkeys(IMAGES, dead))
        with services(path):
            done = run_cycleqd(path, "docker")
        assert done.returncode == 5
        assert f"task 'seed' of seeding ended with exit code {code}" in done.stderr, done.stderr
    finally:
        output("buildah", "rm", container)
        output("buildah", "rmi", "--force", dead)


def ran_in(images: dict[str, str], in_containers: Grown) -> None:
    """The stages that left these records ran in these images."""
    for key, image in images.items():
        assert in_containers.json(key)["image"] == image_name(image), key


def compare(in_processes: Grown, in_containers: Grown) -> None:
    """The same objects, but for what tells of times, places, machines and MLflow's ids; to the end."""
    first, second = ({key for key in one.objects if "parameters/" not in key} for one in (in_processes, in_containers))
    assert first == second
    for key in first:
        content = in_processes.objects[key]
        if not key.endswith(_OWN):
            assert digest(in_containers.objects[key]) == digest(content), key
    assert in_containers.json("HEAD.json")["snapshot"] == 2


def grow(folder: Path, runner: str, rank: int | None = None) -> Grown:
    """Run the real command to the end of an evolution."""
    path = make(folder, rank=rank)
    with services(path) as store:
        done = run_cycleqd(path, runner)
        logs = "\n".join(log.read_text() for log in sorted((folder / "state/runs/world").glob("*/*.log")))
        assert done.returncode == 0, f"{done.stderr}\n{logs[-8000:]}"
        return Grown({key: store.get(key) for key in store.list("")}, logs)


@contextmanager
def services(path: Path) -> Iterator[Store]:
    """The store of a world, its services kept up; the environment as before afterwards."""
    saved = dict(os.environ)
    boto3.DEFAULT_SESSION = None  # it would keep another world's credentials
    try:
        with running(load(path).place) as environment:
            yield connect(load(path), environment).store
    finally:
        os.environ.clear()
        os.environ.update(saved)


def run_cycleqd(path: Path, runner: str) -> subprocess.CompletedProcess[str]:
    """`cycleqd run`, in an environment without settings of services, so that it finds its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    command = [sys.executable, "-m", "cycleqd.cli", "run", "-c", str(path), "--runner", runner, "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
