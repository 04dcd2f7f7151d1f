"""The overlays, built once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
KUBECTL = Path(sys.executable).parent / "kubectl"
OVERLAYS = ("test", "gpu", "server", "bring-your-own")
Objects = list[dict[str, Any]]


def build(folder: Path) -> str:
    """What `kubectl apply -k` would send."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built() -> dict[str, Objects]:
    """The objects of each overlay."""
    return {name: list(yaml.safe_load_all(build(MANIFESTS / "overlays" / name))) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """The name of an overlay; a test with it runs for each."""
    name: str = request.param
    return name


@pytest.fixture
def objects(overlay: str, built: dict[str, Objects]) -> Objects:
    """The objects of the overlay."""
    return built[overlay]
