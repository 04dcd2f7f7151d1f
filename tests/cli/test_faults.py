"""Whatever the machine refuses is one sentence that names the file, never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.outside import told
from tests.pipelines.configs import LLAMA3
from tests.run.conftest import Finished, clean_environment


@pytest.mark.parametrize("command", ["compile", "export", "report", "replay"])
@pytest.mark.timeout(1800)
def test_a_folder_that_cannot_be_made_is_named(command: str, finished: Finished, tmp_path: Path) -> None:
    """A file stands in its way; and /proc takes none, whoever asks."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "inner", Path("/proc/cycleqd")):
        where = {
            "compile": [str(folder)],
            "export": ["final", str(folder)],
            "report": ["--folder", str(folder)],
            "replay": ["final", "--folder", str(folder)],
        }
        result = CliRunner().invoke(app, [command, *where[command], "-c", str(finished.path)])
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("cycleqd: ") and str(folder.parent) in line, line


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cycleqd.cli", "validate", "-c", str(LLAMA3)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
    assert done.returncode == 1
    assert done.stderr.strip() == "cycleqd: No space left on device; free some space, or name a folder on another disk"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cycleqd.cli", "validate", "-c", str(LLAMA3)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x"), InvalidInputError, "/x: Permission denied; name"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), CycleQDError, "/x: No space left on device; free"),
        (OSError(errno.EMFILE, "Too many open files"), CycleQDError, "refused: Too many open files"),
        (TimeoutError("timed out"), CycleQDError, "refused: timed out"),
        (MemoryError(), CycleQDError, "memory is used up"),
    ],
)
def test_what_the_system_says_is_kept(error: OSError | MemoryError, kind: type, said: str) -> None:
    found = told(error)
    assert type(found) is kind and said in str(found)
