"""The adapters' data: the same bytes each time, nothing scored is trained on, and the configuration finds all of it."""

from __future__ import annotations

import json
from pathlib import Path

from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Workspace, load_task
from cycleqd.search.config import load
from examples.smollm2.make_skills import SCORED, main
from examples.tiny.skills import TEMPLATES

CONFIG = Path(__file__).parents[2] / "examples/smollm2/adapters.yaml"
COUNT = 500  # items of a skill to train on


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def made(name: str, seed: int) -> dict[str, bytes]:
        main(tmp_path / name, COUNT, seed)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    first, other = made("first", 0), made("other", 1)
    assert made("again", 0) == first
    assert other.keys() == first.keys()
    assert not [name for name in first if other[name] == first[name]]


def test_nothing_that_is_scored_was_trained_on(tmp_path: Path) -> None:
    main(tmp_path, COUNT, seed=0)
    config = load(CONFIG)
    for skill in TEMPLATES:
        lines = (tmp_path / "train" / f"{skill}.jsonl").read_text().splitlines()
        trained = {json.loads(line)["prompt"][0]["content"] for line in lines}
        assert len(lines) == COUNT and len(trained) > COUNT / 2
        task = config.tasks[skill]
        samples = load_task(task.class_)(task.settings, Workspace(tmp_path)).load(tmp_path / Path(task.data).name)
        search, held_out = ({sample.id for sample in choose(samples, task.split, part)} for part in ("search", "test"))
        assert search and held_out and not search & held_out
        scored = {sample.record.get("request") or sample.record["description"] for sample in samples}
        assert len(scored) == SCORED and not scored & trained
