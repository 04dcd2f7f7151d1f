"""The S3 and MLflow servers of the manifests, really started: tests/manifests/pods.py says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.manifests.conftest import MANIFESTS, build
from tests.manifests.pods import world


@pytest.mark.timeout(300)
def test_s3_and_mlflow_run_as_the_manifests_say(tmp_path: Path) -> None:
    overlay, folder = tmp_path / "overlay.yaml", tmp_path / "pods"
    overlay.write_text(build(MANIFESTS / "overlays" / "test"))
    folder.mkdir()
    seen = world(overlay, folder)
    assert seen["buckets"] == ["cycleqd", "cycleqd-mlflow"]
    assert seen["stranger"] == "AccessDenied"  # without the Secret's keys
    assert seen["score"] == 0.5
    assert seen["artifacts"] == ["artifact.txt"]  # through MLflow into S3
    assert seen["hosts"] == {
        "cycleqd-mlflow:5000": 200,
        "cycleqd-mlflow.kubeflow.svc.cluster.local:5000": 200,
        "localhost:5000": 200,
        "evil.example": 403,
    }
    kept = {path.name for path in (folder / "cycleqd-mlflow" / "data").iterdir()}
    assert "mlflow.db" in kept
