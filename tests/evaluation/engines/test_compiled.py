"""What vLLM compiles is kept in a shared folder by one process at a time, under one path for all models."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd.evaluation.engines.common.compiled import FOLDER, CompileCache

HOLD = """
import sys
from pathlib import Path
from cycleqd.evaluation.engines.common.compiled import CompileCache
taken = CompileCache()
print(taken.take(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_without_a_folder_every_model_is_started_from_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert CompileCache().take(tmp_path) == (tmp_path, {})


def test_one_process_has_the_folder_until_it_ends_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared, first, second = tmp_path / "shared", tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv(FOLDER, str(shared))
    command = [sys.executable, "-c", HOLD, str(first)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and "VLLM_CACHE_ROOT" in holder.stdout.readline()
    assert (shared / "model").readlink() == first
    mine = CompileCache()
    assert mine.take(second) == (second, {}), "it is another's"
    holder.kill()
    assert holder.wait(60) == -signal.SIGKILL
    assert mine.take(second) == (shared / "model", {"VLLM_CACHE_ROOT": str(shared)})
    assert mine.take(first)[0] == shared / "model" and (shared / "model").readlink() == first
    mine.free()
    assert CompileCache().take(second)[1]
