"""Task data on their way from their author's place to the samples of a stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cycleqd.evaluation.staged import StagedTask
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.results import need_result
from tests.evolution import Evolution

DATA = Path(__file__).parents[1] / "data"
DB = {"class": "db", "settings": {"ids": "ids.json"}, "report_only": True}
OS = {"class": "os", "settings": {"ids": "ids.json"}, "report_only": True}


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("remote", [True, False])
def test_a_folder_of_records_and_ids_reaches_the_stage_whole(
    evolution: Callable[..., Evolution], environment: dict[str, str], tmp_path: Path, remote: bool, end: str
) -> None:
    bucket = environment["CYCLEQD_BUCKET"]
    store, root = evolution().store, tmp_path / "author"
    for name, records, ids in (("db", "db_small.jsonl", "[4, 2, 7]"), ("os", "samples.json", "[2, 0]")):
        (root / name / "deep").mkdir(parents=True)
        shutil.copy(DATA / f"{name}_small{Path(records).suffix}", root / name / records)
        (root / name / "ids.json").write_text(ids)
        (root / name / "deep" / "LICENSE").write_text("free")
    if remote:
        for file in root.rglob("*.*"):
            key = f"raw/{file.relative_to(root).as_posix()}"
            store.client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
    place = f"s3://{bucket}/raw" if remote else str(root)
    tasks: dict[str, Any] = {
        "db": {**DB, "data": f"{place}/db{end}"},
        "os": {**OS, "data": f"{place}/os{end}"},
    }
    evo = evolution(tasks=tasks)
    evo.seed()
    config, seeded = load_config(evo.store), need_result(evo.store, layout.SEED)["outputs"]["tasks"]
    shutil.rmtree(root)
    found = {}
    for name in tasks:
        staged = StagedTask.load(evo.store, name, config.tasks[name], seeded[name], tmp_path)
        task = staged.open(tmp_path, 1)
        for part in ("search", "test"):
            found[name, part] = [sample.id for sample in staged.samples(evo.store, task, part, tmp_path)]
    assert sorted(found["db", "search"] + found["db", "test"]) == ["2", "4", "7"]
    assert sorted(found["os", "search"] + found["os", "test"]) == ["0", "2"]
