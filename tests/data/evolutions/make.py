"""Makes the two evolutions that are kept as test data: python -m tests.data.evolutions.make

Both have the configuration beside this file, but for their names, a plug-in task and a plug-in operator. `complete`
is finalised and has a report; `interrupted` was left in the middle of its second generation: its child is made, and
scored on one task of two.
Evolutions of a format are kept for ever: made anew only while the format is not released.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import yaml

from cycleqd.report.write import run as report
from cycleqd.run.local.services import running
from cycleqd.run.steps import next_step
from cycleqd.search.config import Config, load
from cycleqd.storage.evolution import current
from cycleqd.storage.finalising import compared
from cycleqd.storage.objects import Store
from tests.evolution import Evolution
from tests.run.world import make_world

HERE = Path(__file__).parent
OPERATOR = HERE.parents[2] / "examples" / "operators" / "dropout.py"


def make(folder: Path) -> None:
    """Run both under `folder` and write HERE/NAME.zip, the objects of each, and the configuration."""
    shutil.copy(OPERATOR, folder)
    path = make_world(
        folder,
        method={"mutation": {"kind": f"{OPERATOR.name}:Dropout", "rate": 0.2}},
        place={"services": "embedded", "folder": "state", "threads": 1, "workers": 1},
    )
    tree = yaml.safe_load(path.read_text())
    config = load(path)
    with running(config.place) as environment:
        os.environ.update(environment)
        complete(named(config, "complete"), folder)
        interrupted(named(config, "interrupted"))
    tree["place"] = {"services": "external", "group": "generation", "threads": 1, "workers": 1}
    (HERE / "evolution.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def named(config: Config, name: str) -> Evolution:
    """The evolution of this name."""
    return Evolution(config.model_copy(update={"name": name}))


def complete(evolution: Evolution, folder: Path) -> None:
    """All generations, the final model, every score and the report."""
    config, store = evolution.config, evolution.store
    evolution.seeding()
    for _ in range(config.method.generations):
        evolution.generation()
    evolution.aggregate()
    evolution.evaluate(compared(config, current(store)[1], None))
    models = evolution.choose()
    evolution.evaluate(models)
    evolution.evaluate(models, "test")
    assert next_step(config, store, current(store)[1]) is None
    report(store, folder / "report")
    pack(store, HERE / "complete.zip")


def interrupted(evolution: Evolution) -> None:
    """One generation, and most of the second."""
    evolution.seeding()
    evolution.generation()
    (item,) = evolution.select()
    evolution.merge(item)
    evolution.evaluate([json.loads(item)["child"]], tasks=["one"])
    pack(evolution.store, HERE / "interrupted.zip")


def pack(store: Store, path: Path) -> None:
    """Write every object of an evolution; the same objects, the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for key in sorted(store.list("")):
            target.writestr(zipfile.ZipInfo(key), store.get(key), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2_000_000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
