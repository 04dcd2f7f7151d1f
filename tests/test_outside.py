"""Names from outside stay inside, and what is parsed is bounded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import IntegrityError
from cycleqd.outside import inside, is_name
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest
from cycleqd.storage.frozen import fetch
from cycleqd.storage.objects import Store
from cycleqd.storage.results import sealed
from cycleqd.weights.local import LocalSink
from cycleqd.weights.manifest import Manifest

OUT = ["../x", "/tmp/x", "a/../../x", "..", ".", "", "a//b", "a/", "x\0.json", "x\n", "\ud800", "n" * 256]


@pytest.mark.parametrize("name", OUT)
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    assert not is_name(name)
    folder = tmp_path / "folder"
    folder.mkdir()
    for write in (lambda: inside(folder, name), lambda: LocalSink(folder).create(name, 1)):
        with pytest.raises(IntegrityError, match="is no name of a file in a folder"):
            write()
    assert list(tmp_path.rglob("*")) == [folder]


def test_names_of_real_files_are_names() -> None:
    for name in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "tasks/code/data/MBPP+ (v2).jsonl",
        "..a",
        "a..",
        "é",
    ):
        assert is_name(name)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"theirs")
    (folder / "sub").symlink_to(elsewhere)
    (folder / "f").symlink_to(elsewhere / "kept")
    (folder / ".g.part").symlink_to(elsewhere / "kept")
    for name in ("sub/new", "f"):
        with pytest.raises(IntegrityError, match="is a link, and nothing is written through one"):
            inside(folder, name)
    with pytest.raises(OSError, match="symbolic links"):
        LocalSink(folder).create("g", 1)
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]
    assert (elsewhere / "kept").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", [*OUT, "a/b"])
def test_a_manifest_that_names_files_elsewhere_is_refused_when_it_is_read(store: Store, name: str) -> None:
    """Whoever exports, caches, merges or replays a model reads its manifest here first."""
    files = {name: {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    outputs = {"checkpoint": {"digest": "0" * 64, "size": 1, "files": files}}
    body: dict[str, Any] = {"stage": "seed", "method_version": 1, "inputs": {}, "outputs": outputs}
    if name != "\ud800":  # records are UTF-8; a file of JSON may spell it
        store.put(layout.result(layout.stage("base", "make")), sealed(body))
        with pytest.raises(IntegrityError, match="a checkpoint manifest names"):
            manifest(store, "base")
    with pytest.raises(IntegrityError, match="a checkpoint manifest names"):
        Manifest.from_json('{"files": {"%s": {"size": 1, "sha256": ""}}}' % "\\ud800")


@pytest.mark.parametrize("key", ["../out.py", "operators/../../out.py", "/out.py"])
def test_records_of_tasks_and_operators_lead_nowhere_else(store: Store, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(IntegrityError, match="is no name of a file in a folder"):
        fetch(store, key, hashlib.sha256(b"x").hexdigest(), folder)
    assert list(tmp_path.rglob("*")) == [folder]
