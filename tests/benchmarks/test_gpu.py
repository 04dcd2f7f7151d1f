"""`python -m benchmarks.gpu`: what it says without a GPU, and its checks on the CPU in a GPU's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import accurate, merges

# What a machine with a GPU need not have: with None in its place, importing it is an error.
ABSENT = ("boto3", "kfp", "mlflow", "safetensors", "transformers", "vllm", "yaml")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process that has torch, numpy and pydantic only."""
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = ['gpu', *sys.argv[1:]]; "
    code += "import benchmarks.weights.operations; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("part", [[], ["checks"], ["speed"]])
def test_without_a_gpu_it_says_so_in_one_sentence(part: list[str], tmp_path: Path) -> None:
    done = run(*part, "--scratch", str(tmp_path / "scratch"))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 and "no CUDA device" in done.stdout
    assert not (tmp_path / "scratch").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_its_checks_pass_on_a_gpu(tmp_path: Path) -> None:
    done = run("--scratch", str(tmp_path))
    assert done.returncode == 0, done.stdout


def test_a_merge_is_run_in_fresh_processes_and_a_failing_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch takes "cpu:0" for the CPU; to the merge it is a device as "cuda" is."""
    assert merges(tmp_path, "cpu:0", 2)
    assert capsys.readouterr().out.count("works") == 2
    assert list((tmp_path / "out").glob("*.safetensors"))
    assert not merges(tmp_path, "nowhere", 1)
    assert "FAILS: " in capsys.readouterr().out


def test_an_error_above_the_bound_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ((200, 64), (64, 200), (3, 200, 64))
    assert accurate("cpu", shapes)
    assert [line.split(", ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        "200 x 64",
        "64 x 200",
        "3 x 200 x 64",
    ]
    assert not accurate("cpu", shapes, bound=1e-9)
    assert "NOT BELOW 1e-09" in capsys.readouterr().out
