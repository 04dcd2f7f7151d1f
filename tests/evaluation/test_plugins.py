"""Loading a task's class from a module or a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.plugins import load_class
from cycleqd.evaluation.task import Task, Workspace

ECHO = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from cycleqd.evaluation.task import Outcome, Sample, SingleTurn, Task, Verdict

@dataclass
class Word:
    text: str

class Echo(Task):
    greeting = "{greeting}"

    def load(self, data: Path) -> list[Sample]:
        return [Sample(id=word, record=vars(Word(word))) for word in data.read_text().split()]

    def start(self, sample: Sample) -> SingleTurn:
        return SingleTurn(sample, [])

    def verdict(self, episode: SingleTurn) -> Verdict:
        return Verdict(Outcome.PASSED, "")

number = 3
"""


def test_a_class_from_a_module() -> None:
    assert load_class("cycleqd.evaluation.task:Task") is Task


def test_a_class_from_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(ECHO.format(greeting="hi"))
    (tmp_path / "words").write_text("one two")
    before = set(sys.modules), list(sys.path)
    found = load_class("plugin.py:Echo", tmp_path)
    assert (set(sys.modules), list(sys.path)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plugin.py", "words"]
    assert [s.record for s in found({}, Workspace(tmp_path)).load(tmp_path / "words")] == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_two_files_of_one_name_and_a_changed_file_are_told_apart(tmp_path: Path) -> None:
    for folder, greeting in (("a", "hi"), ("b", "ho")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plugin.py").write_text(ECHO.format(greeting=greeting))
    assert [load_class(f"{tmp_path}/{f}/plugin.py:Echo").greeting for f in "ab"] == ["hi", "ho"]
    (tmp_path / "a" / "plugin.py").write_text(ECHO.format(greeting="he"))
    assert load_class("a/plugin.py:Echo", tmp_path).greeting == "he"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugin.py", "neither 'package.module:Class' nor"),
        ("missing.py:Echo", "'missing.py:Echo' cannot be imported .FileNotFoundError"),
        ("no.such.module:Echo", "cannot be imported .ModuleNotFoundError"),
        ("broken.py:Echo", "cannot be imported .ZeroDivisionError"),
        ("plugin.py:Other", "'Other' in 'plugin.py' is not a subclass"),
        ("plugin.py:number", "'number' in 'plugin.py' is not a subclass"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "plugin.py").write_text(ECHO)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(InvalidInputError, match=message):
        load_class(reference, tmp_path)
    assert not [name for name in sys.modules if name.startswith("cycleqd_plugin_")]
