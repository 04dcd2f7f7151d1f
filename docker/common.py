"""What both container tests use: names of the images, an evolution's configuration, commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cycleqd
from tests.run.world import make_world

ROOT = Path(__file__).parent.parent
VERSION = cycleqd.__version__
IMAGES = ("control", "weights", "evaluate")


def image_name(image: str) -> str:
    """The full name of an image: $CYCLEQD_IMAGES/IMAGE:VERSION."""
    return f"{os.environ['CYCLEQD_IMAGES']}/{image}:{VERSION}"


def make(folder: Path, images: dict[str, str] | None = None, rank: int | None = None) -> Path:
    """A tiny world whose two tasks are the real code and DB benchmarks, two children a generation, all separate.

    With a rank it evolves in the span of adapters of that rank, which seeding extracts.
    """
    data = ROOT / "tests/data"
    common = {"generation": {"max_tokens": 6}, "split": {"share": 0.5, "seed": 1}}
    one = {"class": f"{ROOT}/docker/answers.py:Code", "data": str(data / "code_small.jsonl")}
    two = {"class": f"{ROOT}/docker/answers.py:Db", "data": str(data / "db_small.jsonl")}
    return make_world(
        folder,
        tasks={
            "one": {**one, **common, "settings": {"prompt": "{task_id}"}},
            "two": {**two, **common, "settings": {"prompt": "{description}", "judge": "rows", "max_rounds": 1}},
        },
        models={"rank": rank},
        evaluation={"allow_flat_tasks": True},
        method={"children": 2},
        place={"fused": False, "images": images or {image: image_name(image) for image in IMAGES}},
    )


def output(*command: str) -> str:
    """What a command prints, stripped; AssertionError with its stderr where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()
