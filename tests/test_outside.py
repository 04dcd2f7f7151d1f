"""Names from outside stay inside, and what is parsed is bounded."""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.evaluation.benchmarks.code.problem import read_records
from cycleqd.outside import inside, is_name, parse_json, parse_yaml, unpack
from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_head, manifest
from cycleqd.storage.frozen import fetch
from cycleqd.storage.objects import Store
from cycleqd.storage.results import sealed
from cycleqd.weights.headers import parse_header, read_object
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.manifest import Manifest

OUT = ["../x", "/tmp/x", "a/../../x", "..", ".", "", "a//b", "a/", "x\0.json", "x\n", "\ud800", "n" * 256]
LAUGHS = b"a: &a [x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in b"bcdefghij"
)


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


def test_a_manifest_that_names_files_elsewhere_is_refused_when_it_is_read(store: Store) -> None:
    """Whoever exports, caches, merges or replays a model reads its manifest here first."""
    for name in {*OUT, "a/b"} - {"\ud800"}:  # records are UTF-8; a file of JSON may spell half a letter
        files = {name: {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
        outputs = {"checkpoint": {"digest": "0" * 64, "size": 1, "files": files}}
        body: dict[str, Any] = {"stage": "seed", "method_version": 1, "inputs": {}, "outputs": outputs}
        store.put(layout.result(layout.stage("base", "make")), sealed(body))
        with pytest.raises(IntegrityError, match="a checkpoint manifest names"):
            manifest(store, "base")
    with pytest.raises(IntegrityError, match="a checkpoint manifest names"):
        Manifest.from_json('{"files": {"\\ud800": {"size": 1, "sha256": ""}}}')


def test_records_of_tasks_and_operators_lead_nowhere_else(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for key in ("../out.py", "operators/../../out.py", "/out.py"):
        with pytest.raises(IntegrityError, match="is no name of a file in a folder"):
            fetch(store, key, hashlib.sha256(b"x").hexdigest(), folder)
    assert list(folder.parent.glob("*.py")) == []


@pytest.mark.parametrize("text", [b"[" * 500 + b"]" * 500, b"[" * 2_000_000, b'{"a":' * 101 + b"1" + b"}" * 101])
def test_json_is_read_to_a_depth(text: bytes) -> None:
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        parse_json(text)


def test_json_up_to_the_depth_is_read() -> None:
    value = parse_json(b'{"a":' * 100 + b"1" + b"}" * 100)
    for _ in range(100):
        value = value["a"]
    assert value == 1
    with pytest.raises(ValueError, match="at most 10 are read"):
        parse_json(b"[1,2,3,4,5,6]", 10)


def test_records_and_models_files_are_bounded(store: Store, tmp_path: Path) -> None:
    """Each in the sentence of its own kind, never a RecursionError."""
    deep = b'{"a":' * 90_000
    store.put("HEAD.json", deep)
    with pytest.raises(IntegrityError, match=r"HEAD\.json is not JSON \(it is nested"):
        find_head(store)
    (tmp_path / "config.json").write_bytes(deep)
    source = LocalSource(tmp_path)
    with pytest.raises(InvalidInputError, match=r"config\.json of .* is not JSON \(it is nested"):
        read_object(source.read_range, source.location, "config.json", len(deep))
    with pytest.raises(InvalidInputError, match=r"broken safetensors header \(it is nested"):
        parse_header(deep, "f", len(deep) + 8, "f")
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: no byte of it is on the disk
    with pytest.raises(InvalidInputError, match=r"index\.json .*at most 67,108,864 are read"):
        read_object(source.read_range, source.location, "index.json", 1 << 40)


@pytest.mark.parametrize("shape", ["[-2,-2]", "[2.0,2]", '["2",2]', "[true,4]"])
def test_a_header_whose_shapes_are_no_shapes_is_refused(shape: str) -> None:
    text = f'{{"t":{{"dtype":"U8","shape":{shape},"data_offsets":[0,4]}}}}'.encode()
    with pytest.raises(InvalidInputError, match=r"broken safetensors header \(shape"):
        parse_header(text, "f", 8 + len(text) + 4, "f")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"a: " + b"[" * 5000, "nested more than 100 levels"),
        (LAUGHS, "aliases stand for too much"),
        (b"a: " + b"x" * (1 << 20), "has more than 1,048,576 bytes"),
        (b"name: \xff\xfe\xfa", "save the file as UTF-8"),
    ],
)
def test_a_configuration_is_bounded(tmp_path: Path, text: bytes, found: str) -> None:
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(InvalidInputError, match=found):
        load(tmp_path / "c.yaml")
    assert parse_yaml(b"a: &x [1, {b: 2}]\nc: *x") == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}
    assert parse_yaml(b"") is None and parse_yaml(b"text") == "text"


def test_a_device_that_never_ends_is_no_configuration() -> None:
    with pytest.raises(InvalidInputError, match="has more than 1,048,576 bytes"):
        load(Path("/dev/zero"))


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cycleqd.evaluation.benchmarks.inputs.unpack", partial(unpack, most=1 << 20))
    packed = tmp_path / "bomb.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n" * (1 << 24)))
    assert packed.stat().st_size < 1 << 15
    with pytest.raises(InvalidInputError, match="unpacks to more than 1,048,576 bytes"):
        read_records(packed)
    packed.write_bytes(packed.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_records(packed)


def test_an_object_that_is_too_large_is_not_read_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cycleqd.storage.objects.DATA_BYTES", 1000)
    store.put("HEAD.json", b"x" * 1001)
    with pytest.raises(IntegrityError, match=r"HEAD\.json has 1,001 bytes, and what is read whole at most 1,000"):
        find_head(store)
