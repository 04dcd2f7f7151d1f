"""Run the containers of a built overlay on this machine, each in a box that looks as its pod does.

The commands, arguments, environment, user, ports, probes and hooks are the manifest's own; the program comes from this
environment in place of the image's. The root is read-only, volumes are folders. To be started where the ports are free
and the services' names lead to this machine, as `world` does:

    python -m tests.manifests.pods OVERLAY.yaml FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SECRET = {"AWS_ACCESS_KEY_ID": "cycleqd-test", "AWS_SECRET_ACCESS_KEY": "only-in-this-test"}
TOKEN = "of-the-drivers-account"
KUBEFLOW = ("127.0.0.2", 8888)  # another address: SeaweedFS has this port on its own loopback
POD_ADDRESS = "10.244.0.7"  # what a kubelet's probe has in its Host header


def world(overlay: Path, folder: Path) -> dict[str, Any]:
    """Start S3, MLflow and driver as the overlay says, with a network of their own, and use them; what was seen."""
    names = folder / "hosts"
    names.write_text(f"127.0.0.1 localhost cycleqd-s3 cycleqd-mlflow\n{KUBEFLOW[0]} ml-pipeline.kubeflow\n")
    inside = [sys.executable, "-m", "tests.manifests.pods", str(overlay), str(folder)]
    box = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(names), "/etc/hosts", "--unshare-net", "--unshare-pid"]
    done = subprocess.run(
        [*box, "--proc", "/proc", "--die-with-parent", "--", *inside],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{logs}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Pod:
    """One workload of one container, started."""

    def __init__(self, workload: dict[str, Any], objects: list[dict[str, Any]], folder: Path) -> None:
        self.spec = workload["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self.name = workload["metadata"]["name"]
        self.environment = environment_of(self.container, objects)
        self.box = self._box(folder, {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"})
        program = [*self.container["command"], *self.container.get("args", [])]
        self.log = folder / f"{self.name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.box, *program], stdout=log, stderr=log, env=self.environment)

    def _box(self, folder: Path, maps: dict[str, dict[str, str]]) -> list[str]:
        """Read-only but for the volumes; the user of the security context."""
        box = ["bwrap", "--die-with-parent", "--unshare-user", "--uid", str(self.spec["securityContext"]["runAsUser"])]
        for path in ("/usr", "/bin", "/lib", "/lib64", "/etc"):
            box += ["--ro-bind-try", path, path]
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container["volumeMounts"]:
            volume = folder / self.name / mount["name"]
            volume.mkdir(parents=True)
            for name, text in contents(volumes.get(mount["name"], {}), maps).items():
                (volume / name).write_text(text)
            box += ["--ro-bind" if mount.get("readOnly") else "--bind", str(volume), mount["mountPath"]]
        for path in (sys.base_prefix, sys.prefix, str(ROOT)):
            box += ["--ro-bind", path, path]
        return [*box, "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/", "--chdir", "/", "--"]

    def after_start(self) -> None:
        """The postStart hook, which a pod's readiness waits for."""
        hook = self.container["lifecycle"]["postStart"]["exec"]["command"]
        with (self.log.with_suffix(".hook.log")).open("wb") as log:
            subprocess.run([*self.box, *hook], stdout=log, stderr=log, env=self.environment, timeout=120, check=True)

    def wait(self, probe: str) -> None:
        """Wait until a probe of the manifest succeeds, for as long as the start-up probe allows."""
        patience = self.container["startupProbe"]
        deadline = time.monotonic() + patience["periodSeconds"] * patience["failureThreshold"]
        get = self.container[probe]["httpGet"]
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == get["port"])
        while answer(f"http://127.0.0.1:{port}{get['path']}", f"{POD_ADDRESS}:{port}") != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"{self.name} does not answer {get['path']}")
            time.sleep(0.2)


def contents(volume: dict[str, Any], maps: dict[str, dict[str, str]]) -> dict[str, str]:
    """The files of a volume that has some from the start."""
    if "configMap" in volume:
        return maps[volume["configMap"]["name"]]
    return {source["serviceAccountToken"]["path"]: TOKEN for source in volume.get("projected", {}).get("sources", [])}


def environment_of(container: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, str]:
    """A container's variables, those from ConfigMaps and the Secret resolved."""
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    found = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]] if "configMapRef" in source else SECRET
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "configMapKeyRef" in source:
            found[entry["name"]] = maps[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        elif "secretKeyRef" in source:
            found[entry["name"]] = SECRET[source["secretKeyRef"]["key"]]
        else:
            found[entry["name"]] = entry["value"]
    return found


def answer(url: str, host: str) -> int:
    """The HTTP status with this Host header, 0 without an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def use(settings: dict[str, str]) -> dict[str, Any]:
    """What tasks do with S3 and MLflow, with what tasks are told."""
    import boto3
    import mlflow
    from botocore import UNSIGNED
    from botocore.config import Config

    from cycleqd.storage.client import probe
    from cycleqd.storage.objects import Store
    from cycleqd.storage.settings import Settings

    os.environ.update({**settings, **SECRET, "CYCLEQD_BUCKET": "cycleqd"})
    store = Store.connect(Settings.from_environment(), "evolution")
    probe(store)
    stranger = boto3.client(
        "s3", endpoint_url=settings["AWS_ENDPOINT_URL"], config=Config(signature_version=UNSIGNED), region_name="x"
    )
    try:
        stranger.list_objects_v2(Bucket="cycleqd")
        refused = ""
    except stranger.exceptions.ClientError as error:
        refused = error.response["Error"]["Code"]
    mlflow.set_tracking_uri(settings["MLFLOW_TRACKING_URI"])
    experiment = mlflow.create_experiment("evolution")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_metric("score", 0.5)
        mlflow.log_text("kept", "artifact.txt")
    artifacts = Store(store.client, "cycleqd-mlflow", experiment).list("")
    tracking = settings["MLFLOW_TRACKING_URI"]
    hosts = ("cycleqd-mlflow:5000", "cycleqd-mlflow.kubeflow.svc.cluster.local:5000", "localhost:5000", "evil.example")
    return {
        "buckets": sorted(bucket["Name"] for bucket in store.client.list_buckets()["Buckets"]),
        "stranger": refused,
        "score": mlflow.get_run(run.info.run_id).data.metrics["score"],
        "artifacts": [key.rsplit("/", 1)[-1] for key in artifacts],
        "hosts": {
            host: answer(f"{tracking}/ajax-api/2.0/mlflow/experiments/search?max_results=1", host) for host in hosts
        },
    }


def drive(job: dict[str, Any], objects: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run the driver's Job against a Kubeflow that asks for the account's token and whose first run refuses."""
    import boto3

    from cycleqd.errors import InvalidInputError
    from cycleqd.storage.failures import recorded
    from cycleqd.storage.objects import Store
    from cycleqd.storage.settings import Settings
    from tests.run.kfp_server import Backend, serving
    from tests.run.world import make_world

    make_world(folder / "given")
    given = {"base": "base", "expert-code": "red", "expert-db": "blue", "expert-os": "red"}
    files = [(f"models/{to}/{f.name}", f) for to, name in given.items() for f in (folder / "given" / name).iterdir()]
    files += [(f"tasks/{name}", folder / "hosts") for name in ("code.jsonl", "db.jsonl", "os.json", "copying.txt")]
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for key, file in [*files, ("copying.py", ROOT / "examples/tiny/copying.py")]:
        client.upload_file(str(file), "cycleqd", f"given/tiny/{key}")

    def refuse(run: dict[str, Any]) -> None:
        os.environ["KFP_RUN_ID"] = run["run_id"]
        with recorded(Store.connect(Settings.from_environment(), "tiny"), "seed"):
            raise InvalidInputError("a model is not what it was")

    backend = Backend(token=TOKEN, ends=refuse)
    with serving(backend, KUBEFLOW):
        driver = Pod(job, objects, folder)
        code = driver.process.wait(120)
    return {
        "code": code,
        "said": driver.log.read_text(),
        "pipelines": sorted(pipeline["name"] for pipeline in backend.pipelines.values()),
        "runs": [run["display_name"] for run in backend.runs.values()],
    }


def main(overlay: Path, folder: Path) -> None:
    objects = [o for o in yaml.safe_load_all(overlay.read_text()) if o]
    workloads = {o["metadata"]["name"]: o for o in objects if o["kind"] in ("StatefulSet", "Deployment", "Job")}
    (settings,) = (o["data"] for o in objects if o["metadata"]["name"] == "cycleqd-settings")
    s3 = Pod(workloads["cycleqd-s3"], objects, folder)
    s3.after_start()
    s3.wait("readinessProbe")
    mlflow = Pod(workloads["cycleqd-mlflow"], objects, folder)
    mlflow.wait("readinessProbe")
    seen = use(settings)
    print(json.dumps({**seen, "driver": drive(workloads["cycleqd-driver"], objects, folder)}))


if __name__ == "__main__":
    tempfile.tempdir = sys.argv[2]
    main(Path(sys.argv[1]), Path(sys.argv[2]))
