"""scripts/torch-build: which build of torch pip would take is told before anything is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/torch-build"
REQUIREMENTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["weights"]
PIN = next(requirement.partition("==")[2] for requirement in REQUIREMENTS if requirement.startswith("torch=="))
WITH_TORCH = Path(sys.prefix) / "bin/pip"


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pip of a new environment, as `make demo` has it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin/pip"


def told(pip: Path, *arguments: str, versions: tuple[str, ...] = (), **environment: str) -> str:
    """What the script says where pip finds these versions of torch only; empty files, of which nothing can be read."""
    folder = pip.parents[1] / "wheels"
    if versions:
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for version in versions:
            (folder / f"torch-{version}-py3-none-any.whl").touch()
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    settings = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", **environment}
    done = subprocess.run([SCRIPT, str(pip), *arguments], env=settings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


@pytest.mark.parametrize("version", [PIN, f"{PIN}+cu130"])
def test_the_cuda_build_is_told_with_its_size_and_the_setting_for_the_other(pip: Path, version: str) -> None:
    said = told(pip, versions=(version, "2.0.0", "99.0"))
    assert f"CUDA build ({version})" in said
    assert re.search(r"[\d.]+ GB to download and [\d.]+ GB on the disk", said)
    assert "PIP_EXTRA_INDEX_URL" in said and "PIP_FIND_LINKS" in said
    assert "://" not in said


@pytest.mark.parametrize("versions", [(f"{PIN}+cpu",), (PIN, f"{PIN}+cpu"), (f"{PIN}1", "99.0")])
def test_nothing_is_said_where_pip_takes_the_cpu_build_or_finds_none(pip: Path, versions: tuple[str, ...]) -> None:
    assert told(pip, versions=versions) == ""


def test_a_cuda_build_that_is_installed_is_told_for_images_only(pip: Path, tmp_path: Path) -> None:
    (tmp_path / f"torch-{PIN}-py3-none-any.whl").touch()
    places = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    assert told(WITH_TORCH, **places) == ""
    assert "CUDA build" in told(WITH_TORCH, "anew", **places)
    assert "CUDA build" in told(pip, **places)


def test_an_index_that_does_not_answer_and_a_pip_that_is_not_there_stop_nothing(pip: Path) -> None:
    assert told(pip, PIP_INDEX_URL="http://127.0.0.1:9/simple") == ""
    assert told(Path("/nowhere/bin/pip")) == ""


def test_the_sizes_were_measured_with_the_torch_that_is_installed() -> None:
    assert f"measured with torch {PIN}" in SCRIPT.read_text()


def test_the_demo_tells_before_it_installs() -> None:
    commands = subprocess.run(
        ["make", "-n", "-B", ".venv/.demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    asked = next(i for i, line in enumerate(commands) if "scripts/torch-build .venv/bin/pip" in line)
    assert asked < next(i for i, line in enumerate(commands) if "pip install" in line)


@pytest.mark.parametrize(("version", "built"), [(PIN, False), (f"{PIN}+cpu", True)])
def test_images_that_are_asked_for_with_the_cpu_build_are_never_built_with_the_other(
    pip: Path, tmp_path: Path, version: str, built: bool
) -> None:
    """In a copy whose pip finds this torch alone, where buildah says what it is asked for."""
    for name in ("docker/build", "scripts/torch-build", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/pip").symlink_to(pip)
    (tmp_path / f"torch-{version}-py3-none-any.whl").touch()
    buildah = tmp_path / "bin/buildah"
    buildah.parent.mkdir()
    buildah.write_text("#!/bin/sh\necho buildah $@\n")
    buildah.chmod(0o755)
    places = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    settings = {**os.environ, **places, "PATH": f"{buildah.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [tmp_path / "docker/build", "--cpu", "weights"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, "buildah bud" in done.stderr) == (built, built), done.stderr
    if not built:
        assert done.returncode == 2
        assert "PIP_EXTRA_INDEX_URL" in done.stderr and "docker/build --cpu: nothing is built" in done.stderr
