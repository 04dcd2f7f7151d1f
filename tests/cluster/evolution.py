"""An evolution on a real Kubeflow Pipelines, by the real program, and what happens to it there.

CYCLEQD_CLUSTER_PROFILE names a profile file (endpoint, namespace, images, bucket …). S3 and MLflow must be reachable
from here as AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI say, with keys in the environment: by port-forwards, for instance.
Tests that take workflows, pods or nodes away call kubectl.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cycleqd.search.config import load
from cycleqd.storage.evolution import find_head
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from tests.run.world import make_world

PROFILE = "CYCLEQD_CLUSTER_PROFILE"
NEEDED = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI")
PATIENCE = 1800.0


@dataclass(frozen=True)
class Evolution:
    """An evolution of its own name in the profile's bucket."""

    config: Path
    store: Store

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cycleqd.cli", *arguments]
        files = ["-c", str(self.config), "--profile", str(Path(os.environ[PROFILE]).resolve())]
        return subprocess.Popen([*command, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def call(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=2 * 3600)
        assert process.returncode == code, f"{arguments}: exit code {process.returncode}\n{out}\n{err}"
        return err if code else out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.call(*arguments, "--json"))

    def kubectl(self, *arguments: str) -> str:
        """Its output. Objects are of the namespace where runs execute."""
        namespace = load(self.config, Path(os.environ[PROFILE])).place.namespace
        command = [shutil.which("kubectl") or pytest.skip("no kubectl in PATH"), "-n", namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"kubectl {arguments}: {done.stderr}"
        return done.stdout

    def pods(self, run: str, task: str = "") -> list[str]:
        """The names of a run's pods that are running, of a task if one is named."""
        listed = json.loads(self.kubectl("get", "pods", "-l", f"pipeline/runid={run}", "-o", "json"))["items"]
        label = json.dumps(f"exec-{task}")
        running = [one for one in listed if one["status"]["phase"] == "Running"]
        return [one["metadata"]["name"] for one in running if not task or label in json.dumps(_arguments(one))]

    def pod(self, run: str, task: str) -> str:
        """A running pod of a task, waited for."""
        wait_for(lambda: bool(self.pods(run, task)), every=1)
        return self.pods(run, task)[0]

    def clean_up(self, run: str) -> None:
        """Remove a run's workflow, and with it the pods, as Kubeflow does an hour after the run's end."""
        self.kubectl("delete", "workflow", "-l", f"pipeline/runid={run}")
        wait_for(lambda: not self.kubectl("get", "pods", "-l", f"pipeline/runid={run}", "-o", "name"))

    def made(self) -> dict[str, float]:
        """When everything that stages have recorded so far was computed, by key."""
        keys = [key for key in self.store.list("") if key.endswith("/run.json")]
        return {key: self.store.get_json(key)["started"] for key in keys}

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """Runs by name, the newest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.json("runs", "--limit", "0"):
            found.setdefault(run["name"], []).append(run)
        return found

    def state(self, name: str) -> str:
        found = self.runs().get(name)
        return found[0]["state"] if found else ""

    def snapshot(self) -> int:
        head = find_head(self.store)
        return -1 if head is None else head.snapshot


def _arguments(pod: dict[str, Any]) -> list[str]:
    containers = [one for one in pod["spec"]["containers"] if one["name"] == "main"]
    return [text for one in containers for text in (*one.get("command", ()), *one.get("args", ()))]


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE, every: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:.0f} s"
        time.sleep(every)


def make(folder: Path, generations: int, retries: int = 0, plugin: Callable[[str], str] = str) -> Evolution:
    """`plugin` alters the text of the tasks' class."""
    missing = [name for name in (PROFILE, *NEEDED) if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster: set {' and '.join(missing)}")
    name = f"cluster-{secrets.token_hex(4)}"
    place = {"services": "external", "group": "generation", "threads": 1, "workers": 1, "retries": retries}
    path = make_world(folder, name=name, method={"generations": generations}, place=place)
    code = path.parent / "task.py"
    code.write_text(plugin(code.read_text()))
    tree = yaml.safe_load(path.read_text())
    tree["place"] = place  # the rest is the profile's to say
    path.write_text(yaml.safe_dump(tree))
    bucket = load(path, Path(os.environ[PROFILE])).place.bucket
    settings = Settings.from_environment({**os.environ, "CYCLEQD_BUCKET": bucket})
    return Evolution(path, Store.connect(settings, name))
