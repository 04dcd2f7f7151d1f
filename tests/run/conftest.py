"""One tiny evolution, run once by the real command, with its services kept up for the commands that look at it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.cli.session import Session, connect
from cycleqd.run.local.services import running
from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from tests.run.processes import processes_of
from tests.run.world import make_world

_OURS = ("AWS_", "MLFLOW_", "CYCLEQD_")


def clean_environment() -> dict[str, str]:
    """The environment without settings of services, so that a command must find its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


POD = {
    "KFP_RUN_ID": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "KFP_POD_NAME": "cycleqd-abcde-system-container-impl-1",
    "CYCLEQD_IMAGE": "registry.example/cycleqd@sha256:0123456789abcdef",
    "CYCLEQD_CODE_VERSION": "0.1.0+1234567",
}
"""What a pod's environment says of where it runs."""


def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """The real program, as a process that Ctrl-C reaches, even where the tests themselves run in the background.

    `more` is added to its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cycleqd.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment() | more,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@dataclass(frozen=True)
class Finished:
    """An evolution that was run to its end, its session while the services are up, and what it was at its end."""

    path: Path
    summary: dict[str, Any]
    session: Session
    content: dict[str, bytes]


def content(store: Store) -> dict[str, bytes]:
    """What an evolution is: archives, HEAD, plans and results. What tells of time and place is left out."""
    own = [key for key in store.list("") if not key.startswith(layout.PARAMETERS)]
    return {key: store.get(key) for key in own if not key.endswith(("/run.json", "/mlflow.json"))}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose processes end with the test, also where it fails."""
    yield tmp_path
    for process in processes_of(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    path = make_world(tmp_path_factory.mktemp("evolution"))
    saved = dict(os.environ)
    with running(load(path).place) as environment:
        process = start("run", "-c", str(path), "--json", **POD)
        output, errors = process.communicate(timeout=1500)
        assert process.returncode == 0, errors
        session = connect(load(path), environment)
        yield Finished(path, json.loads(output), session, content(session.store))
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def call(finished: Finished) -> Callable[..., Any]:
    """call("status", …) → what the command prints as JSON for the finished evolution."""

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "-c", str(finished.path), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


@pytest.fixture
def text(finished: Finished) -> Callable[..., str]:
    """text("status", …) → what the command prints for people."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "-c", str(finished.path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run
