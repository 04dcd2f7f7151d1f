"""The command line itself: help, usage, exit codes, and what it does with hostile text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd import errors
from cycleqd.cli import app
from cycleqd.cli.output import duration, plain, size
from tests.pipelines.configs import LLAMA3
from tests.run.conftest import clean_environment

HEAVY = {"torch", "transformers", "mlflow", "kfp", "boto3", "botocore", "vllm", "numpy", "matplotlib"}
COMMANDS = {
    *("validate", "run", "status", "archive", "models", "lineage", "samples"),
    *("replay", "audit", "export", "compare", "report", "compile"),
    *("submit", "drive", "schedule", "unschedule", "runs", "logs", "retry", "cancel"),
}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["models", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from cycleqd.cli import app
try:
    app({arguments!r})
except SystemExit:
    print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.strip() == "[]"


def test_help_names_every_command_and_exit_code() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(command in shown for command in COMMANDS)
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert codes == {1, 2, 3, 4, 5, 6}
    assert all(f"{code} " in shown for code in (*codes, 130))


def test_wrong_usage_is_exit_code_2() -> None:
    assert CliRunner().invoke(app, ["lineage"]).exit_code == 2
    assert CliRunner().invoke(app, ["no-such-command"]).exit_code == 2


def test_a_missing_configuration_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["status", "-c", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr.startswith("cycleqd: ") and "none.yaml" in result.stderr


def test_run_on_a_cluster_names_the_command_for_it(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("runner: kubeflow")
    result = CliRunner().invoke(app, ["run", "-c", str(LLAMA3)], env={"CYCLEQD_PROFILE": str(profile)})
    assert result.exit_code == 2
    assert f"`cycleqd drive -c {LLAMA3} --profile {profile}`" in result.stderr
    result = CliRunner().invoke(app, ["run", "-c", str(LLAMA3), "--runner", "moon"])
    assert result.exit_code == 2 and "runner: must be 'local', 'docker' or 'kubeflow', not 'moon'" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLEQD_DEBUG", "1")
    result = CliRunner().invoke(app, ["status", "-c", str(tmp_path / "none.yaml")])
    assert isinstance(result.exception, errors.InvalidInputError)


def test_external_services_must_be_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cycleqd.cli", "status", "-c", str(LLAMA3)],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.returncode == 2 and "MLFLOW_TRACKING_URI" in done.stderr and "Traceback" not in done.stderr


def test_validate_tells_every_problem_at_once(tmp_path: Path) -> None:
    """Without services, models or data: each is a problem of its own, and the method's oddities are warnings."""
    tree = yaml.safe_load(LLAMA3.read_text())
    tree["models"]["base"] = str(tmp_path / "base")
    tree["models"]["experts"]["db"]["path"] = str(tmp_path / "db")
    tree["tasks"]["db"] = {"class": "missing.module:Class", "data": str(tmp_path / "data")}
    tree["method"]["mutation"]["w_max"] = 0.5
    tree["method"]["generations"] = 10
    path = tmp_path / "cycleqd.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "cycleqd.cli", "validate", "--json", "-c", str(path)],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    for said in (str(tmp_path / "base"), str(tmp_path / "db"), "missing.module", "MLFLOW_TRACKING_URI"):
        assert sum(said in problem for problem in found["problems"]) == 1, (said, found)
    assert any("225 cells" in warning and "10 children" in warning for warning in found["warnings"])
    assert any("can then only shrink" in warning for warning in found["warnings"])


def test_validate_names_every_wrong_key(tmp_path: Path) -> None:
    tree = yaml.safe_load(LLAMA3.read_text())
    tree["method"]["colour"], tree["place"]["speed"] = "red", 3
    path = tmp_path / "cycleqd.yaml"
    path.write_text(yaml.safe_dump(tree))
    result = CliRunner().invoke(app, ["validate", "--json", "-c", str(path)])
    problems = json.loads(result.stdout)["problems"]
    assert result.exit_code == 2 and len(problems) == 2
    assert "method.colour" in problems[0] and "place.speed" in problems[1]


def test_the_terminal_never_obeys_a_model() -> None:
    hostile = "ok\x1b]0;title\x07\x1b[2J\r\x9b31m\u202egnp.exe\x00"
    shown = plain(hostile)
    assert shown == "ok\\x1b]0;title\\x07\\x1b[2J\\x0d\\x9b31m\\x202egnp.exe\\x00"
    assert plain("line\nnext\tcolumn é 漢") == "line\nnext\tcolumn é 漢"


def test_figures_for_people() -> None:
    assert [size(n) for n in (999, 1500, 16e9, 2.5e15)] == ["999 B", "1.5 KB", "16.0 GB", "2500.0 TB"]
    assert [duration(n) for n in (12, 200, 7500, 273600)] == ["12 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"]
