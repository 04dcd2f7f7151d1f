"""The pages' examples: commands, options, targets and files exist; the README's plug-in and first evolution work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.evaluation.engines import Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.task import Message, Workspace, load_task
from cycleqd.search.config import load
from tests.scripted import Scripted

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks of {language}"
    return found[0]


class Parrot(Scripted):
    """Repeats what it was asked to, except the line that holds `fails`."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def reply(self, conversation: Sequence[Message]) -> str:
        text = conversation[-1]["content"].removeprefix("repeat ")
        return "" if self.fails in text else f" {text}\n"


def test_the_worked_example_is_the_file_and_scores(tmp_path: Path) -> None:
    assert (ROOT / "examples/tiny/copying.py").read_text().endswith(block("python"))
    (tmp_path / "copying.py").write_text(block("python"))
    (tmp_path / "words.txt").write_text("one\ntwo three\nfour five\none six\n")
    task = load_task("copying.py:Copying", tmp_path)({}, Workspace(tmp_path))
    with task:
        found = evaluate(Parrot("one"), task, task.load(tmp_path / "words.txt"), Sampling(8), workers=2)
    assert found.score == 0.5
    assert [record.outcome for record in found.records] == ["wrong", "passed", "passed", "wrong"]


def test_the_first_evolution_is_a_valid_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"^cycleqd (init (?:.*\\\n)*.*)$", README, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command.replace("\\\n", " "), comments=True))
    assert result.exit_code == 0, result.stderr
    assert load(tmp_path / "cycleqd.yaml").search_tasks == ("code", "os")


def test_the_guide_from_adapters_to_an_adapter_has_ten_commands_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guide,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/adapters.md").read_text(), re.DOTALL)
    commands = guide.replace("\\\n", " ").splitlines()
    assert sum(1 + command.count(" && ") for command in commands) <= 10
    (init,) = [command for command in commands if command.startswith("cycleqd init")]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(init)[1:])
    assert result.exit_code == 0, result.stderr
    assert load(tmp_path / "mine.yaml").search_tasks == ("code", "db", "os")


def test_the_commands_of_the_readme_are_complete() -> None:
    """Every one parses as it is written, and finds `cycleqd` and a configuration by what is written before it."""
    blocks = [text.replace("\\\n", " ") for text in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
    for line in (line for text in blocks for line in text.splitlines() if line.startswith("cycleqd ")):
        _, name, *arguments = shlex.split(line, comments=True)
        COMMANDS[name].make_context(name, arguments)
    (tour,) = [text for text in blocks if "cycleqd status" in text]
    activate, setting, *_ = tour.splitlines()
    assert activate == ". .venv/bin/activate"
    config = re.fullmatch(r"export CYCLEQD_CONFIG=(\S+) +#.*", setting)
    assert config is not None and load(ROOT / config[1]).name == "tiny"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_take_these_options(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`(cycleqd [^`]*)`", text)
    for command, rest in re.findall(r"\bcycleqd ([a-z]+)\b([^;#|\n]*)", "\n".join(lines)):
        options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z-]+", rest)) <= options, (command, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_paths_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(
        r"`((?:benchmarks|cycleqd|components|docker|examples|manifests|tests)/[\w/-]+(?:\.[a-z]+|/))[`:]", text
    )
    assert not [path for path in paths if not (ROOT / path).exists()]
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert not set(re.findall(r"`make ([a-z-]+)", text)) - set(targets)


def test_the_quick_tests_exist() -> None:
    (quick,) = re.findall(r"^QUICK := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    paths = quick.replace("\\\n", " ").split()
    assert len(paths) > 10 and not [path for path in paths if not (ROOT / path).exists()]


def test_the_map_names_every_folder() -> None:
    rows = re.findall(r"^\| (`[a-z_/]+/`(?:, `[a-z_/]+/`)*) \|", CONTRIBUTING, re.MULTILINE)
    named = set(re.findall(r"`([a-z_/]+)/`", " ".join(rows)))
    assert not [folder for folder in named if not (ROOT / folder).is_dir()]
    rooms = [path.parent.relative_to(ROOT) for path in ROOT.glob("c*/*/__init__.py")]
    rooms += [path.parent.relative_to(ROOT) for path in ROOT.glob("cycleqd/evaluation/benchmarks/*/__init__.py")]
    assert not {str(room) for room in rooms} - named
