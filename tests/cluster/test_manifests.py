"""The manifests on a real Kubernetes without Kubeflow: S3 and MLflow are used, right answers judged in a task's pod.

`make test-manifests` starts a cluster and gives it the images; kubectl is told by the environment where it is, and
CYCLEQD_CLUSTER_IMAGES are two prefixes, of the project's images and of the two servers'.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from cycleqd import __version__
from cycleqd.errors import CycleQDError
from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings

ROOT = Path(__file__).parents[2]
NAMESPACE = "cycleqd-manifests"
IMAGES = os.environ.get("CYCLEQD_CLUSTER_IMAGES", "")
# What Kubeflow Pipelines 2.17 gives the container of a task, its seccomp profile apart.
RIGHTS = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not IMAGES, reason="no cluster: make test-manifests"),
]


def kubectl(*arguments: str, given: str | None = None) -> str:
    """What kubectl prints, in the test's namespace; AssertionError with its words where it fails."""
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, str]]:
    """Those of S3's one user; the environment has them, too."""
    made = {"AWS_ACCESS_KEY_ID": "cycleqd", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module", autouse=True)
def applied(keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The test overlay in a namespace of its own, ready. The name space has the manifest's labels: Pod Security."""
    servers = IMAGES.split(",")[1]
    folder = tmp_path_factory.mktemp("overlay")
    named = {"chrislusf/seaweedfs": "s3", "ghcr.io/mlflow/mlflow": "mlflow"}
    images = [{"name": name, "newName": f"{servers}/{image}", "newTag": "1"} for name, image in named.items()]
    overlay = {"namespace": NAMESPACE, "resources": [os.path.relpath(ROOT / "manifests/overlays/test", folder)]}
    (folder / "kustomization.yaml").write_text(json.dumps({**overlay, "images": images}))
    space = yaml.safe_load((ROOT / "manifests/namespace/namespace.yaml").read_text())
    space["metadata"]["name"] = NAMESPACE
    kubectl("apply", "-f", "-", given=json.dumps(space))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cycleqd-credentials"}, "stringData": keys}
    kubectl("apply", "-f", "-", given=json.dumps(secret))
    kubectl("apply", "-k", str(folder))
    kubectl("rollout", "status", "--timeout=300s", "statefulset/cycleqd-s3", "deployment/cycleqd-mlflow")


@contextmanager
def forwarded(service: str, port: int) -> Iterator[str]:
    """The URL at which a service of the namespace answers here, as the page on Kubernetes has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = free.getsockname()[1]
    command = ["kubectl", "--namespace", NAMESPACE, "port-forward", f"service/{service}", f"{here}:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and "Forwarding" in process.stdout.readline()
        yield f"http://localhost:{here}"
        process.terminate()


def settings(url: str) -> Settings:
    servers = {"AWS_ENDPOINT_URL": url, "MLFLOW_TRACKING_URI": "unused"}
    return Settings.from_environment({**servers, "CYCLEQD_BUCKET": "cycleqd"})


def test_s3_keeps_objects_and_lets_no_stranger_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with forwarded("cycleqd-s3", 8333) as url:
        store = Store.connect(settings(url), "seen")
        store.put("a/b", b"kept")
        assert store.get("a/b") == b"kept" and list(store.list("")) == ["a/b"]
        names = [bucket["Name"] for bucket in connect_client(settings(url)).list_buckets()["Buckets"]]
        assert sorted(names) == ["cycleqd", "cycleqd-mlflow"]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        with pytest.raises(CycleQDError):
            Store.connect(settings(url), "seen").get("a/b")


def test_mlflow_keeps_scores_and_gives_artifacts_to_s3() -> None:
    with forwarded("cycleqd-mlflow", 5000) as url:
        client = MlflowClient(url)
        run = client.create_run(client.create_experiment("seen")).info.run_id
        client.log_metric(run, "score", 0.5)
        client.log_text(run, "a line", "note.txt")
        assert client.get_run(run).data.metrics == {"score": 0.5}
        assert [artifact.path for artifact in client.list_artifacts(run)] == ["note.txt"]
    with forwarded("cycleqd-s3", 8333) as url:
        s3 = connect_client(settings(url))
        found = s3.list_objects_v2(Bucket="cycleqd-mlflow")["Contents"]
        assert [item["Key"].rpartition("/")[2] for item in found] == ["note.txt"]


def test_the_driver_waits_for_its_word() -> None:
    assert json.loads(kubectl("get", "job/cycleqd-driver", "-o", "json"))["spec"]["suspend"]


def judged(name: str, profile: dict[str, str] | None) -> tuple[int, list[str]]:
    """The exit code and the lines of docker/judge.py in a Job's pod with a Kubeflow task's rights."""
    files = [ROOT / "docker/judge.py", ROOT / "docker/answers.py", *(ROOT / "tests/data").glob("*_small.json*")]
    given = {file.name: file.read_text() for file in files}
    container = {
        "name": "main",
        "image": f"{IMAGES.split(',')[0]}/evaluate:{__version__}",
        "command": ["python3", "/given/judge.py", "/given"],
        "securityContext": {**RIGHTS, **({"seccompProfile": profile} if profile else {})},
        "volumeMounts": [{"name": "given", "mountPath": "/given"}],
    }
    pod = {"restartPolicy": "Never", "volumes": [{"name": "given", "configMap": {"name": name}}]}
    template = {"spec": {**pod, "automountServiceAccountToken": False, "containers": [container]}}
    job = {"backoffLimit": 0, "template": template}
    for kind, body in (("ConfigMap", {"data": given}), ("Job", {"spec": job})):
        version = "batch/v1" if kind == "Job" else "v1"
        manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **body}
        kubectl("apply", "-f", "-", given=json.dumps(manifest))
    status = ended(name)
    return int(not status.get("succeeded")), kubectl("logs", f"job/{name}").splitlines()


def ended(job: str, seconds: float = 600) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status: dict[str, Any] = json.loads(kubectl("get", f"job/{job}", "-o", "json")).get("status", {})
        if status.get("succeeded") or status.get("failed"):
            return status
        time.sleep(2)
    raise AssertionError(f"{job} is not done after {seconds:.0f} s: {kubectl('describe', 'pods')[-2000:]}")


def test_a_tasks_pod_judges_right_answers_right() -> None:
    code, lines = judged("judge", None)
    assert code == 0, lines
    assert json.loads(lines[-1]) == {"code": 1.0, "db": 1.0, "os": 1.0}


def test_under_the_runtimes_seccomp_profile_the_stage_says_what_to_change() -> None:
    code, lines = judged("judge-confined", {"type": "RuntimeDefault"})
    assert code == 1
    for task in ("code", "db", "os"):
        assert any(task in line and "seccomp" in line for line in lines), lines
