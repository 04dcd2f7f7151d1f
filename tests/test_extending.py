"""docs/extending.md shows complete files, as they are."""

from __future__ import annotations

import re
from pathlib import Path

from cycleqd.evaluation.engines import EngineSettings, Sampling, create
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.task import Workspace, load_task
from cycleqd.loading import own_names
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.final import Final
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.selection import Selection

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()


def test_every_block_is_the_file_named_before_it() -> None:
    for text, code in re.findall(r"(.*?)```python\n(.*?)```", PAGE, re.DOTALL):
        file = re.findall(r"\]\(\.\./([\w/]+\.py)\)", text)[-1]
        assert code == (ROOT / file).read_text(), file


def test_the_engine_replies(tmp_path: Path) -> None:
    engine = create(f"{ROOT / 'examples/engines/echo.py'}:Echo", EngineSettings())
    task = load_task(f"{ROOT / 'examples/tiny/copying.py'}:Copying")({}, Workspace(tmp_path))
    (tmp_path / "words.txt").write_text("one\ntwo three\n")
    found = evaluate(engine, task, task.load(tmp_path / "words.txt"), Sampling(8), workers=1)
    assert [record.replies for record in found.records] == [("repeat one",), ("repeat two three",)]


def test_every_operator_is_named() -> None:
    for base in (Selection, Crossover, Mutation, Copies, Final):
        assert all(f"`{name}`" in PAGE for name in own_names(base.own_modules))
