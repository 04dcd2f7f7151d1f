"""The check of an image's packages, on two lists: those of `weights` with torch's CPU build and with its CUDA build."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from contents import PROBE, faults, read, torch_build

LISTS = Path(__file__).parent.parent / "tests/data/images"
OWN = ["cycleqd", "components"]


def recorded(build: str) -> dict[str, str]:
    """The versions of the packages of `weights` with a build of torch."""
    lines = (LISTS / f"weights-{build}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        ("cpu", "torch 2.13.0+cpu, its CPU build"),
        ("cuda", "torch 2.13.0, its CUDA build, with 19 packages of libraries"),
    ],
)
def test_both_builds_of_torch_are_right_and_told_apart(build: str, said: str) -> None:
    assert faults("weights", recorded(build), OWN) == []
    assert torch_build(recorded(build)) == said


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_what_a_stage_does_not_need_is_named_and_so_is_what_is_missing(build: str) -> None:
    packages = recorded(build)
    assert faults("weights", {**packages, "pytest": "9", "transformers": "5"}, [*OWN, "tests", "pipelines"]) == [
        "weights needs no pytest",
        "weights needs no transformers",
        "weights needs none of our pipelines",
        "weights needs none of our tests",
    ]
    del packages["safetensors"]
    assert faults("weights", packages, ["cycleqd"]) == ["weights lacks safetensors", "weights lacks our components"]


def test_cuda_libraries_have_no_business_without_torchs_cuda_build() -> None:
    (beside_cpu,) = faults("weights", {**recorded("cpu"), "triton": "3"}, OWN)
    assert beside_cpu == "weights has torch's CPU build and needs no triton"
    client = dict.fromkeys(["typer", "rich", "kubernetes", "pipelines"], "1")
    without = {name: version for name, version in recorded("cuda").items() if name not in ("torch", "safetensors")}
    (beside_none,) = faults("control", {**without, **client}, [*OWN, "pipelines"])
    assert beside_none.startswith("control runs no torch and needs no cuda-bindings, ")


def test_the_probe_reads_an_environment() -> None:
    printed = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    packages, own = read(printed)
    assert packages["pydantic-core"] and packages["torch"].startswith("2.")
    assert "cycleqd" in own and json.loads(printed)[0] == packages
