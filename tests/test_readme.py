"""The README's examples: the plug-in is the file it says it is and works; the configuration is valid; names exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from cycleqd.evaluation.engines.engine import Completion, Progress, Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.task import Message, Workspace, load_task
from cycleqd.search.config import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks of {language}"
    return found[0]


class Parrot:
    """A scripted model: repeats what it was told to, except the line that holds `fails`."""

    name, reproducible, version = "scripted", True, ""

    def __init__(self, fails: str) -> None:
        self.fails = fails

    def load(self, folder: Path, digest: str) -> None: ...

    def generate(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        texts = [conversation[-1]["content"].removeprefix("repeat ") for conversation in conversations]
        return [Completion("" if self.fails in text else f" {text}\n", "stop", 1, 1) for text in texts]

    def reset(self) -> None: ...

    def close(self) -> None: ...


def test_the_worked_example_is_the_file_and_scores(tmp_path: Path) -> None:
    assert block("python") in (ROOT / "examples/tiny/copying.py").read_text()
    (tmp_path / "copying.py").write_bytes((ROOT / "examples/tiny/copying.py").read_bytes())
    (tmp_path / "words.txt").write_text("one\ntwo three\nfour five\none six\n")
    task = load_task("copying.py:Copying", tmp_path)({}, Workspace(tmp_path))
    with task:
        found = evaluate(Parrot("one"), task, task.load(tmp_path / "words.txt"), Sampling(8), workers=2)
    assert found.score == 0.5
    assert [record.outcome for record in found.records] == ["wrong", "passed", "passed", "wrong"]


def test_the_configuration_is_valid() -> None:
    assert parse(yaml.safe_load(block("yaml")), "README").search_tasks == ("code", "os")


def test_named_files_and_folders_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
    tree = README.rpartition("```\ncycleqd/")[2]
    folders = re.findall(r"^([a-z_]+)/", "cycleqd/" + tree, re.MULTILINE)
    assert folders and all((ROOT / folder).is_dir() for folder in folders)
