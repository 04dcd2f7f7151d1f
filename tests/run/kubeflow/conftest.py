"""A server that answers as Kubeflow Pipelines and Kubernetes do, and drivers of the evolution "golden" on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd.run import decisions
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Steps
from cycleqd.storage.objects import Store
from tests.pipelines.configs import two_tasks
from tests.run.kfp_backend import Backend
from tests.run.kfp_server import leading_to, serving

_VARIABLES = ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_UI_ENDPOINT")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Backend]:
    """What both servers hold; the environment leads to them, and nobody waits for long."""
    for name in (*_VARIABLES, "KUBERNETES_SERVICE_HOST", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "GONE_SECONDS", 0.05)
    monkeypatch.setattr(decisions, "FIRST_PAUSE", 0.0)
    state = Backend()
    with serving(state) as url:
        for name, value in leading_to(url, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield state


@pytest.fixture
def steps(backend: Backend, store: Store) -> Steps:
    """Starts runs of an evolution of which S3 knows nothing."""
    config = two_tasks(runner="kubeflow")
    return Steps(config, Kubeflow(config.place), store, lambda: config)
