"""What this machine lacks is a sentence with what to do; what is there is said, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.run import machine
from cycleqd.run.machine import Device, host, memory, needs
from cycleqd.search.config import Config, load, placed
from tests.pipelines.configs import two_tasks


def of(config: Config, **evaluation: object) -> Config:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=evaluation)})


def missing(config: Config) -> list[str]:
    return [need.missing for need in host(config, lambda part: None)[0] if need.missing]


def test_here_everything_is_there() -> None:
    config = placed(of(two_tasks(), engine="transformers"), runner="local", device="cpu")
    found, device = host(config, lambda part: None)
    assert {need.name: need.found for need in found}["engine"] == "torch, transformers"
    assert not missing(config) and device == Device("cpu", 0)


def test_each_lack_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = placed(of(two_tasks(), engine="transformers"), runner="local", folder="/proc/cycleqd")
    monkeypatch.setattr(machine, "_PACKAGES", {"transformers": "absent_package"})
    folder, engine = missing(config)
    assert "place.folder: nothing can be written in /proc" in folder and "name another folder" in folder
    assert "No module named 'absent_package'" in engine and "pip install 'cycleqd[run]'" in engine


def test_a_device_that_is_not_there() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    config = placed(of(two_tasks(), engine="transformers"), runner="local", device="cuda")
    (said,) = missing(config)
    assert said.startswith("place.device is cuda, and torch sees no CUDA device here")


def test_a_model_that_does_not_fit_is_named_before_it_is_loaded() -> None:
    config = two_tasks()
    assert not memory(config, Device("cuda", 80 * 10**9), 16 * 10**9).missing
    assert (
        "the GPU has 24.0 GB of memory, and a model of 64.0 GB"
        in memory(config, Device("cuda", 24 * 10**9), 64 * 10**9).missing
    )
    assert "this machine has" in memory(config, Device("cpu", 0), 10**15).missing


def test_on_a_cluster_nothing_is_needed_here() -> None:
    assert needs(placed(two_tasks(), runner="kubeflow"), lambda part: None) == []


def test_the_doctor_prints_the_list(tmp_path: Path) -> None:
    tree = two_tasks().model_dump(mode="json", by_alias=True)
    tree["tasks"]["one"]["class"] = "missing.module:Class"
    tree["evaluation"]["engine"], tree["place"] = "transformers", {"folder": str(tmp_path), "device": "cpu"}
    path = tmp_path / "evolution.yaml"
    path.write_text(yaml.safe_dump(tree))
    name = next(iter(load(path).tasks))
    done = CliRunner().invoke(app, ["doctor", "-c", str(path), "--json"])
    found = {need["name"]: need for need in json.loads(done.stdout)}
    assert done.exit_code == 5 and "missing.module" in found[f"task '{name}'"]["missing"]
    assert found["engine"]["found"] and found["place.folder"]["found"].endswith("GB free")
