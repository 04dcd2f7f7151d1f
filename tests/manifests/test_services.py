"""The S3 and MLflow servers and the driver of the manifests, really started: tests/manifests/pods.py says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import InvalidInputError
from tests.manifests.conftest import MANIFESTS, build
from tests.manifests.pods import world

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pods")


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    overlay = tmp_path_factory.mktemp("overlay") / "test.yaml"
    overlay.write_text(build(MANIFESTS / "overlays" / "test"))
    return world(overlay, folder)


def test_s3_has_its_buckets_and_lets_nobody_in_without_the_keys(seen: dict[str, Any]) -> None:
    assert seen["buckets"] == ["cycleqd", "cycleqd-mlflow"]
    assert seen["stranger"] == "AccessDenied"


def test_mlflow_keeps_scores_on_its_volume_and_artifacts_in_s3(seen: dict[str, Any], folder: Path) -> None:
    assert seen["score"] == 0.5
    assert seen["artifacts"] == ["artifact.txt"]
    assert "mlflow.db" in {path.name for path in (folder / "cycleqd-mlflow" / "data").iterdir()}


def test_mlflow_answers_to_the_names_that_it_has(seen: dict[str, Any]) -> None:
    assert seen["hosts"] == {
        "cycleqd-mlflow:5000": 200,
        "cycleqd-mlflow.kubeflow.svc.cluster.local:5000": 200,
        "localhost:5000": 200,
        "evil.example": 403,
    }


def test_the_driver_checks_submits_and_fails_its_job_with_the_tasks_sentence(seen: dict[str, Any]) -> None:
    driver = seen["driver"]
    assert driver["runs"] == ["tiny-seeding"] and driver["pipelines"] == ["tiny-seeding"], driver["said"]
    assert driver["code"] == InvalidInputError.exit_code, "which podFailurePolicy takes as an answer"
    assert "seed: a model is not what it was" in driver["said"]
    assert "cycleqd retry" in driver["said"] and "Traceback" not in driver["said"]
