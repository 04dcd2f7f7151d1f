"""The images themselves: what they hold, who runs in them, what a pod must allow, and that they can be pushed.

docker/test runs this: it builds the images, named $CYCLEQD_IMAGES/IMAGE:VERSION.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from common import IMAGES, ROOT, VERSION, image_name, make, output

from cycleqd.config import load

pytestmark = pytest.mark.timeout(600)

CLIENT = {"typer", "rich", "kubernetes"}
# What containerd's and Docker's default profiles refuse a container without CAP_SYS_ADMIN; Podman's own allows more.
CLONE_NEWUSER = 0x10000000
RUNTIME_DEFAULT = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["unshare", "setns", "mount", "umount2", "pivot_root", "sethostname"], "action": "SCMP_ACT_ERRNO"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"}],
        },
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ],
}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_stages_need_and_no_more(image: str) -> None:
    common = {"boto3", "mlflow", "kfp", "matplotlib"}
    wanted = {
        "control": {*common, *CLIENT, "pipelines"},
        "weights": {*common, "torch", "safetensors"},
        "evaluate": {*common, "torch", "safetensors", "transformers", "evalplus", "tree_sitter", "pymysql"},
    }
    modules = {*wanted["evaluate"], *wanted["control"], "tests", "pytest", "hypothesis", "vllm", "nvidia"}
    code = f"import importlib.util as u; print(*[m for m in {sorted(modules)} if u.find_spec(m)])"
    found = set(inside(image, "python3", "-c", code).split())
    # EvalPlus and transformers may bring rich or typer along.
    assert found - CLIENT == wanted[image] - CLIENT
    assert image != "control" or found >= CLIENT
    programs = inside(image, "sh", "-c", "for p in bwrap mariadbd gcc git curl; do command -v $p || true; done").split()
    assert {Path(p).name for p in programs} == ({"bwrap", "mariadbd"} if image == "evaluate" else set())


def test_the_control_image_holds_the_client(tmp_path: Path) -> None:
    path = make(tmp_path)
    told = inside("control", "cycleqd", "drive", "--help")
    assert "--profile" in told and "--namespace" in told
    compiled = inside(
        "control", "cycleqd", "compile", "/tmp/compiled", "-c", "/world/cycleqd.yaml", user="0:0", mount=path
    )
    assert "generation" in compiled


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_run_by_a_plain_user_and_tells_no_secret(image: str) -> None:
    described = json.loads(output("buildah", "inspect", "--type", "image", image_name(image)))
    config = described["OCIv1"]["config"]
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", config["User"])
    text = json.dumps(described)
    assert not re.search(r"index-url|find-links|PIP_(EXTRA_)?INDEX|AWS_|PASSWORD|TOKEN", text)
    assert inside(image, "sh", "-c", "cat /etc/pip.conf 2>/dev/null; ls /build 2>/dev/null || true").strip() == ""
    assert inside(image, "id", "-u").strip() == "1000"
    label = {name.rpartition(".")[2]: text for name, text in config["Labels"].items() if name.startswith("org.opencon")}
    commit = output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--match", "")
    assert label == {"title": f"cycleqd {image}", "version": VERSION, "revision": commit, "licenses": "Apache-2.0"}
    assert f"CYCLEQD_IMAGE={image_name(image)}" in config["Env"]
    assert f"CYCLEQD_CODE_VERSION={VERSION}+{commit[:12]}{commit[40:]}" in config["Env"]


@pytest.mark.parametrize("user", ["1000:1000", "4711:0"])
def test_a_plain_user_can_write_where_stages_and_their_libraries_do(user: str) -> None:
    """Also one that no file of accounts knows, as OpenShift gives them. The launcher's own folders are mounted."""
    code = (
        "import getpass, pathlib, tempfile, matplotlib, mlflow;"
        "tempfile.mkdtemp(); (pathlib.Path.home() / 'x').touch(); pathlib.Path('/tmp/kfp_outputs').mkdir();"
        "pathlib.Path('here').touch(); print(getpass.getuser(), matplotlib.get_configdir())"
    )
    assert inside("evaluate", "python3", "-c", code, user=user).split()[0] == "cycleqd"


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_in_an_image_tells_when_it_was_built(image: str) -> None:
    """So that the same commit makes the same layers: no times, and no compiled files that hold the time of a source."""
    code = (
        "import pathlib;"
        "files = [p for p in pathlib.Path('/opt/cycleqd').rglob('*') if not p.is_symlink()];"
        "print(sum(p.stat().st_mtime != 315532800 for p in files));"
        "compiled = [p for p in files if p.suffix == '.pyc'];"
        "print(len(compiled) > 1000, sum(p.read_bytes()[4] != 3 for p in compiled))"
    )
    assert inside(image, "python3", "-B", "-c", code).split() == ["0", "True", "0"]


class TestInAPod:
    """The evaluate image as a pod has it: its own user, no capability, no way to get one."""

    def test_boxes_and_databases_work_without_a_seccomp_profile(self) -> None:
        judged = judge("unconfined")
        assert judged.returncode == 0, judged.stderr
        assert json.loads(judged.stdout) == {"code": 1.0, "db": 1.0}

    def test_a_seccomp_profile_that_refuses_name_spaces_is_named(self, tmp_path: Path) -> None:
        profile = tmp_path / "profile.json"
        profile.write_text(json.dumps(RUNTIME_DEFAULT))
        judged = judge(str(profile))
        assert judged.returncode == 1
        for line, task in zip(judged.stderr.splitlines(), ("code", "db"), strict=True):
            assert line.startswith(f"task '{task}'"), line
            assert "seccomp profile of this container refuses them" in line and "Unconfined" in line


def test_pushed_images_are_named_by_digest(tmp_path: Path) -> None:
    """`docker/build --push` to a real registry: what it prints is a profile, and the registry knows the digest."""
    with registry(tmp_path) as address:
        command = ["docker/build", "--push", "--prefix", f"{address}/team/cycleqd"]
        command += ["--base-image", os.environ["CYCLEQD_BASE_IMAGE"], "control"]
        environment = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        local = f"{address}/team/cycleqd/control:{VERSION}"
        assert f'"CYCLEQD_IMAGE={local}"' in output("buildah", "inspect", "--type", "image", local)
        output("buildah", "rmi", local)
        profile = tmp_path / "images.yaml"
        profile.write_text(done.stdout)
        named = load(make(tmp_path), profile).place.images
        name, _, found = named.control.partition("@")
        assert name == f"{address}/team/cycleqd/control" and named.weights == image_name("weights")
        kept = tmp_path / "registry/docker/registry/v2/blobs" / found.replace(":", f"/{found[7:9]}/") / "data"
        assert f"sha256:{hashlib.sha256(kept.read_bytes()).hexdigest()}" == found


def test_no_image_is_tagged_latest() -> None:
    names = output("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").split()
    ours = [name for name in names if name.startswith(f"{os.environ['CYCLEQD_IMAGES']}/")]
    assert {image_name(image) for image in IMAGES} <= set(ours)
    assert not any(name.endswith(":latest") for name in ours)


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """The address of a registry that lasts as long as the context, one that buildah may speak to without TLS."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        address = f"localhost:{one.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    (folder / "registry.yaml").write_text(json.dumps(settings))
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    with (folder / "registry.log").open("w") as log:
        command = ["docker-registry", "serve", str(folder / "registry.yaml")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        answers_at(f"http://{address}/v2/")
        yield address
    finally:
        process.terminate()
        process.wait(10)


def answers_at(address: str, seconds: float = 30) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def inside(image: str, *command: str, user: str = "", mount: Path | None = None) -> str:
    """The output of a command in a container of an image, with the folder of `mount` at /world."""
    options = ["--user", user] if user else []
    options += ["--volume", f"{mount.parent}:/world:ro"] if mount else []
    return output("podman", "run", "--rm", "--network", "none", *options, image_name(image), *command)


def judge(seccomp: str) -> subprocess.CompletedProcess[str]:
    """docker/judge.py in the evaluate image, without rights."""
    rights = ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--security-opt", f"seccomp={seccomp}"]
    folders = ["--volume", f"{ROOT}/docker:/docker:ro", "--volume", f"{ROOT}/tests/data:/data:ro"]
    command = ["podman", "run", "--rm", "--network", "none", *rights, *folders, image_name("evaluate")]
    command += ["python3", "/docker/judge.py", "/data"]
    return subprocess.run(command, capture_output=True, text=True, check=False)
