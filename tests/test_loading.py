"""Finding a class: one of the library by its name, one of installed code, one in a user's file."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.benchmarks.db.task import DbTask
from cycleqd.evaluation.task import Task, Workspace, load_task
from cycleqd.loading import load_class, own_names
from cycleqd.search.algorithms import Algorithm
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.final import Final
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.selection import Selection

ECHO = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from cycleqd.plugins import Outcome, Sample, SingleTurn, Task, Verdict

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
    assert load_task(f"{DbTask.__module__}:DbTask") is DbTask


def test_a_benchmark_of_the_library_has_a_short_name() -> None:
    assert load_task("db") is DbTask
    assert own_names(Task.own_modules) == ["code", "db", "os"]


def test_every_operator_and_algorithm_is_found_by_its_modules_name_alone() -> None:
    """Nothing lists them: a module more is a kind more."""
    for base in (Selection, Crossover, Mutation, Copies, Final):
        for name in own_names(base.own_modules):
            found = load_class(name, base)
            assert (found().kind, found.__module__) == (name, base.own_modules.format(name))
    for name in own_names(Algorithm.own_modules):
        assert issubclass(load_class(name, Algorithm), Algorithm)


def test_what_a_plugin_imports_brings_no_torch() -> None:
    heavy = "torch", "transformers", "boto3", "mlflow", "kfp"
    code = f"import sys, cycleqd.plugins; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_class_from_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(ECHO.format(greeting="hi"))
    (tmp_path / "words").write_text("one two")
    importlib.import_module("cycleqd.plugins")
    before = set(sys.modules), list(sys.path)
    found = load_task("plugin.py:Echo", tmp_path)
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
    assert [load_task(f"{tmp_path}/{f}/plugin.py:Echo").greeting for f in "ab"] == ["hi", "ho"]
    (tmp_path / "a" / "plugin.py").write_text(ECHO.format(greeting="he"))
    assert load_task("a/plugin.py:Echo", tmp_path).greeting == "he"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugin.py", "there is no task 'plugin.py'; there are code, db, os, or give"),
        ("dbs", "there is no task 'dbs' .did you mean 'db'.+; there are code, db, os, or give"),
        ("unfinished.py:Half", "'Half' in 'unfinished.py' lacks load, start, verdict, which every task has"),
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
    (tmp_path / "unfinished.py").write_text("from cycleqd.plugins import Task\nclass Half(Task): ...")
    with pytest.raises(InvalidInputError, match=message):
        load_task(reference, tmp_path)
    assert not [name for name in sys.modules if name.startswith("cycleqd_plugin_")]
