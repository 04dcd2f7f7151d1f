"""cycleqd init writes a configuration that is valid, commented and the user's own; cycleqd --version."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cycleqd import __version__
from cycleqd.cli import app
from cycleqd.search.config import load

MODELS = ["--base", "/models/base", "--expert", "coder=/models/coder:code", "--expert", "admin=s3://m/a:b:os"]
TASKS = ["--task", "code=/data/MbppPlus.jsonl.gz", "--task", "os=/data/agentbench_os"]


def init(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments, "-c", str(file)])


def test_the_configuration_names_what_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    result = init(
        file,
        *MODELS,
        *TASKS,
        "--task",
        f"sums={tmp_path}/data/sums, 1.txt,{tmp_path}/sums.py:Sums",
        "--expert",
        f"s={tmp_path}/{{s}}:sums",
    )
    assert result.exit_code == 0, result.stderr
    assert f"cycleqd validate -c {file}" in result.stdout
    config = load(file)
    assert config.name == "mine" and config.models.base == "/models/base"
    assert {name: (expert.path, expert.task) for name, expert in config.models.experts.items()} == {
        "coder": ("/models/coder", "code"),
        "admin": ("s3://m/a:b", "os"),
        "s": (f"{tmp_path}/{{s}}", "sums"),
    }
    assert {name: (task.class_.rpartition(":")[2], task.data) for name, task in config.tasks.items()} == {
        "code": ("code", "/data/MbppPlus.jsonl.gz"),
        "os": ("os", "/data/agentbench_os"),
        "sums": ("Sums", f"{tmp_path}/data/sums, 1.txt"),
    }
    assert config.place.services == "embedded"
    assert sum("#" in line for line in file.read_text().splitlines()) > 10


def test_built_in_benchmarks_can_be_imported() -> None:
    from cycleqd.cli.init import BENCHMARKS
    from cycleqd.evaluation.task import load_task

    assert all(load_task(name) for name in BENCHMARKS)


def test_relative_paths_lead_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    tasks = ["--task", "code=data/code.jsonl", "--task", "own=own.txt,plugins/own.py:Own"]
    result = init(Path("configs/first.yaml"), "--base", "base", "--expert", "a=a:code", "--expert", "b=b:own", *tasks)
    assert result.exit_code == 0, result.stderr
    config = load(tmp_path / "configs/first.yaml")
    assert config.models.base == str(tmp_path / "base")
    assert config.tasks["own"].class_ == f"{tmp_path}/plugins/own.py:Own"


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    result = init(file, *MODELS, *TASKS)
    assert result.exit_code == 2 and f"{file} exists" in result.stderr
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*MODELS, *TASKS, "--expert", "third=/models/third"], "--expert third=/models/third: write NAME=PATH:TASK"),
        ([*MODELS, *TASKS, "--task", "sums=sums.txt"], "add the task's class: sums=sums.txt,path/to/file.py:Class"),
        ([*MODELS, *TASKS, "--task", "code=other.jsonl"], "same name"),
        ([*MODELS, *TASKS, "--task", "db=a\nb"], "cannot be printed"),
        ([*MODELS, *TASKS, "--task", "db=tables.jsonl"], "task 'db' has no expert"),
        ([*MODELS, *TASKS[:2]], "at least 2"),
        ([*MODELS, *TASKS, "--name", "Two Words"], "name: must be lower-case letters"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = init(tmp_path / "mine.yaml", *arguments)
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"cycleqd {__version__}\n"
