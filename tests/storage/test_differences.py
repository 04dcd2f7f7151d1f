"""Whoever edits data, a plug-in or a model after seeding is told that the evolution goes on with what was seeded."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cycleqd.search.config import Config, parse
from cycleqd.storage import differences as module
from cycleqd.storage.differences import differences
from cycleqd.storage.frozen import adopt
from tests.evolution import Evolution


@pytest.fixture
def moved(grown: Evolution, tiny_models: Path, tiny_tasks: Path, tmp_path: Path) -> tuple[Config, Path]:
    """The grown evolution's configuration with copies of all its files, which a test may edit; and their folder."""
    shutil.copytree(tiny_models, tmp_path / "models")
    shutil.copytree(tiny_tasks, tmp_path / "tasks")
    text = json.dumps(grown.tree).replace(str(tiny_models), str(tmp_path / "models"))
    return parse(json.loads(text.replace(str(tiny_tasks), str(tmp_path / "tasks"))), "copy"), tmp_path


def found(grown: Evolution, config: Config) -> list[str]:
    return list(differences(grown.store, config, adopt(grown.store, config)))


def test_copies_elsewhere_are_no_difference(grown: Evolution, moved: tuple[Config, Path]) -> None:
    assert found(grown, moved[0]) == []


def test_files_that_are_gone_are_no_difference(grown: Evolution, moved: tuple[Config, Path]) -> None:
    config, folder = moved
    shutil.rmtree(folder / "models")
    shutil.rmtree(folder / "tasks")
    assert found(grown, config) == []


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _config(key: str, value: Any) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("tasks/one.json", lambda file: file.write_text("[]"), "task 'one': one.json changed since it was seeded"),
        ("tasks/letters.py", lambda file: file.write_text(file.read_text() + "\n"), "task 'one': letters.py changed"),
        ("models/a/model.safetensors", _flip, "expert-a: model.safetensors in "),
        ("models/base/config.json", _config("rope_theta", 5.0), "base: config.json in "),
        ("models/base/added.json", lambda file: file.write_text("{}"), "base: added.json in "),
        ("models/b/tokenizer.json", lambda file: file.unlink(), "expert-b: tokenizer.json in "),
    ],
)
def test_an_edited_file_is_named(
    grown: Evolution, moved: tuple[Config, Path], file: str, edit: Callable[[Path], None], said: str
) -> None:
    config, folder = moved
    edit(folder / file)
    first, *others = found(grown, config)
    assert first.startswith(said) and "goes on with the copies that it was seeded with" in first
    assert len(others) == (2 if file.endswith("letters.py") else 0), "which three tasks share"


def test_another_training_is_seen_in_a_large_file_that_is_older_than_its_copy(
    grown: Evolution, moved: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = moved
    monkeypatch.setattr(module, "_SMALL", 1000)
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: _older(stat(path, **more)))
    assert found(grown, config) == []
    shutil.copy(folder / "models/b/model.safetensors", folder / "models/a/model.safetensors")
    (said,) = found(grown, config)
    assert said.startswith("expert-a: model.safetensors in ")


def _older(seen: os.stat_result) -> os.stat_result:
    fields = list(seen)
    fields[9] = 0  # st_ctime in whole seconds
    return os.stat_result(fields)


def test_end_tokens_are_what_seeding_sets(grown: Evolution, moved: tuple[Config, Path]) -> None:
    config, folder = moved
    file = folder / "models/base/generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**settings, "eos_token_id": [1, 2, 3]}))
    assert found(grown, config) == []


def test_a_setting_that_is_taken_out_of_the_file_is_named(grown: Evolution) -> None:
    tree = copy.deepcopy(grown.tree)
    del tree["seed"]
    (said,) = found(grown, parse(tree, "shorter"))
    assert said == "settings that the file leaves out are as they were seeded: seed is 3 (now by default: 0)"
