"""An evolution with a container a task, against the same evolution in processes: docker/test runs this.

The images are built before; a Podman service with Docker's interface answers at $DOCKER_HOST, and images are named
$CYCLEQD_IMAGES/STAGE:VERSION.
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

import cycleqd
from components.shared.store.objects import Store
from cycleqd.config import load
from pipelines.cli.session import connect
from pipelines.services import running
from tests.pipelines.world import make_world

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parent.parent
VERSION = cycleqd.__version__
IMAGES = {
    "control": ("seed", "select_parents", "update_archives"),
    "weights": ("merge", "mutate", "aggregate"),
    "evaluate": ("evaluate",),
}
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
    return grow(tmp_path_factory.mktemp("processes"), runner="local")


@pytest.fixture(scope="module")
def in_containers(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("containers"), runner="docker")


def test_containers_and_processes_give_the_same_bytes(in_processes: Grown, in_containers: Grown) -> None:
    assert set(in_containers.objects) == set(in_processes.objects)
    for key, content in in_processes.objects.items():
        if not key.endswith(_OWN):
            assert digest(in_containers.objects[key]) == digest(content), key
    assert in_containers.json("HEAD.json")["snapshot"] == 2


def test_every_task_ran_in_the_image_of_its_stage(in_containers: Grown) -> None:
    made = {
        "seed/run.json": "control",
        "generations/000001/update/run.json": "control",
        "generations/000001/children/g000001-c00/merge/run.json": "weights",
        "generations/000001/children/g000001-c01/mutate/run.json": "weights",
        "generations/000001/children/g000001-c01/evaluations/one/search/run.json": "evaluate",
        "models/final/make/run.json": "weights",
        "models/final/evaluations/two/test/run.json": "evaluate",
    }
    for key, image in made.items():
        assert in_containers.json(key)["image"] == image_name(image), key
    used = set(re.findall(r"Found image '([^']+)'", in_containers.logs))
    assert used == {image_name(stage) for stages in IMAGES.values() for stage in stages}
    assert "Pulling image" not in in_containers.logs


def test_answers_were_judged_by_the_real_judges(in_containers: Grown) -> None:
    """A box that does not open or a server that does not start would have stopped the stage; a score needs both."""
    for task in ("one", "two"):
        records = [v for k, v in in_containers.objects.items() if f"/evaluations/{task}/" in k and "result" in k]
        scores = [json.loads(record)["body"]["outputs"]["score"] for record in records]
        assert 0 < max(scores) <= 1 and min(scores) < max(scores), (task, scores)


def test_a_container_that_dies_at_once_is_no_success(tmp_path: Path) -> None:
    """kfp may call it one, as the container is gone before its status can be read; the driver asks the records."""
    dead = f"localhost/cycleqd-dead/seed:{VERSION}"
    container = output("buildah", "from", image_name("control"))
    try:
        output("buildah", "config", "--entrypoint", '["/bin/false"]', container)
        output("buildah", "commit", "--quiet", container, dead)
        for stage in ("evaluate", "update_archives"):
            output("buildah", "tag", dead, dead.replace("seed", stage))
        path = make(tmp_path, runner="docker", image=f"localhost/cycleqd-dead/{{stage}}:{VERSION}")
        with services(path):
            done = run_cycleqd(path)
        assert done.returncode != 0
        assert "seeding pipeline failed" in done.stderr or "its records are not in" in done.stderr, done.stderr
    finally:
        output("buildah", "rm", container)
        output("buildah", "rmi", "--force", dead)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_stages_need_and_no_more(image: str) -> None:
    wanted = {
        "control": {"boto3", "mlflow", "matplotlib", "kfp"},
        "weights": {"boto3", "mlflow", "kfp", "torch", "safetensors"},
        "evaluate": {"boto3", "mlflow", "kfp", "torch", "safetensors", "transformers", "evalplus", "pymysql"},
    }
    modules = {*wanted["evaluate"], "matplotlib", "pipelines", "tests", "pytest", "hypothesis", "vllm", "nvidia"}
    code = f"import importlib.util as u; print(*[m for m in {sorted(modules)} if u.find_spec(m)])"
    found = set(inside(image, "python3", "-c", code).split())
    assert found - {"matplotlib"} == wanted[image] - {"matplotlib"}
    programs = inside(image, "sh", "-c", "for p in bwrap mariadbd gcc git curl; do command -v $p || true; done").split()
    assert {Path(p).name for p in programs} == ({"bwrap", "mariadbd"} if image == "evaluate" else set())


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_run_by_a_plain_user_and_tells_no_secret(image: str) -> None:
    described = json.loads(output("buildah", "inspect", "--type", "image", image_name(image)))
    config = described["OCIv1"]["config"]
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", config["User"])
    text = json.dumps(described)
    assert not re.search(r"index-url|find-links|PIP_(EXTRA_)?INDEX|AWS_|PASSWORD|TOKEN", text)
    assert inside(image, "sh", "-c", "cat /etc/pip.conf 2>/dev/null; ls /build").strip() == ""
    assert inside(image, "id", "-u").strip() == "1000"


def test_no_image_is_tagged_latest() -> None:
    names = output("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").split()
    ours = [name for name in names if "/cycleqd/" in name]
    assert {image_name(stage) for stages in IMAGES.values() for stage in stages} <= set(ours)
    assert all(name.endswith(f":{VERSION}") for name in ours)


def image_name(image: str) -> str:
    return f"{os.environ['CYCLEQD_IMAGES']}/{image}:{VERSION}"


def make(folder: Path, **place: str) -> Path:
    """A tiny world whose two tasks are the real code and DB benchmarks, two children a generation, all separate."""
    data = ROOT / "tests/data"
    common = {"generation": {"max_tokens": 6}, "split": {"share": 0.5, "seed": 1}}
    one = {"class": f"{ROOT}/docker/answers.py:Code", "data": str(data / "code_small.jsonl")}
    two = {"class": f"{ROOT}/docker/answers.py:Db", "data": str(data / "db_small.jsonl")}
    return make_world(
        folder,
        tasks={
            "one": {**one, **common, "settings": {"prompt": "{task_id}"}},
            "two": {**two, **common, "settings": {"prompt": "{description}", "judge": "rows", "max_rounds": 1}},
        },
        evaluation={"allow_flat_tasks": True},
        method={"children": 2},
        place={"fused": False, "image": f"{os.environ['CYCLEQD_IMAGES']}/{{stage}}:{VERSION}", **place},
    )


def grow(folder: Path, runner: str) -> Grown:
    """Run the real command to the end of an evolution."""
    path = make(folder, runner=runner)
    with services(path) as store:
        done = run_cycleqd(path)
        logs = "\n".join(log.read_text() for log in sorted((folder / "state/runs/world").glob("*.log")))
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


def run_cycleqd(path: Path) -> subprocess.CompletedProcess[str]:
    """`cycleqd run`, in an environment without settings of services, so that it finds its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    command = [sys.executable, "-m", "pipelines.cli", "run", "-c", str(path), "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def inside(image: str, *command: str) -> str:
    return output("podman", "run", "--rm", "--network", "none", image_name(image), *command)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
