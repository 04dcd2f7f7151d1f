"""Stored JSON says its format, is brought to the present one when it is read, and is known by the bytes it has."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable

import pytest

from cycleqd.errors import CycleQDError, IntegrityError, InvalidInputError
from cycleqd.evaluation.records import read_transcripts
from cycleqd.search.records import JSON
from cycleqd.storage import formats, layout
from cycleqd.storage.evolution import current, load_config, load_state, need_head, need_plan
from cycleqd.storage.objects import Store
from cycleqd.storage.results import find_record, need_result, sealed
from tests.evolution import Evolution


def test_every_stored_json_carries_its_format(grown: Evolution) -> None:
    seen, store = set(), grown.store
    for key in store.list(""):
        data = store.get(key)
        if "/checkpoint/" in key or key.startswith("tasks/"):
            continue  # a checkpoint's digest has a form of its own, task data are their author's
        lines = gzip.decompress(data).splitlines() if key.endswith(".jsonl.gz") else [data]
        assert {json.loads(line)["format"] for line in lines} == {formats.FORMAT}, key
        seen.add(key.rsplit("/", 1)[-1])
    assert seen >= {"config.json", "HEAD.json", "plan.json", "result.json", "run.json", "mlflow.json", "000003.json"}
    assert seen >= {"samples.jsonl.gz"}


def test_whoever_names_an_object_names_the_sha256_of_its_bytes(grown: Evolution) -> None:
    store = grown.store

    def sha256(key: str) -> str:
        return hashlib.sha256(store.get(key)).hexdigest()

    assert need_head(store).sha256 == current(store)[1].digest == sha256("archives/000003.json")
    assert need_plan(store, 2).snapshot == load_state(store, 2).digest == sha256("archives/000002.json")
    assert need_result(store, layout.SEED)["inputs"]["config"] == sha256("config.json")
    inputs = need_result(store, layout.update(2))["inputs"]
    assert inputs["plan"] == sha256("generations/000002/plan.json")
    for model, records in inputs["evaluations"].items():
        for task, named in records.items():
            assert named == sha256(layout.result(layout.evaluation(model, task, "search")))


def test_a_record_is_sealed_by_the_bytes_that_are_stored(store: Store) -> None:
    """Not by those that this version would write: here the keys stand in another order, with spaces."""
    bare = b'{"outputs": 1.50, "format": 1}'
    seal = hashlib.sha256(bare).hexdigest()
    store.put("home/result.json", bare[:-1] + f',"sha256":"{seal}"}}'.encode())
    found = find_record(store, "home/result.json")
    assert found is not None and found.body == {"outputs": 1.5}
    assert found.sha256 == store.sha256("home/result.json")
    store.put("home/result.json", store.get("home/result.json").replace(b"1.50", b"1.5"))
    with pytest.raises(IntegrityError, match=r"home/result\.json does not have the sha256 it is sealed with"):
        find_record(store, "home/result.json")


@pytest.mark.parametrize(
    ("key", "data", "read"),
    [
        ("HEAD.json", b'{"sha256":"00","snapshot":3}', need_head),
        ("config.json", b'{"name": "empty"}', lambda store: store.get_json("config.json")),
        (
            "seed/result.json",
            b'{"body":{"stage":"seed"},"sha256":"' + b"0" * 64 + b'"}',
            lambda store: need_result(store, "seed"),
        ),
    ],
)
def test_an_evolution_of_0_1_is_refused_with_the_version_that_opens_it(
    store: Store, key: str, data: bytes, read: Callable[[Store], object]
) -> None:
    store.put(key, data)
    with pytest.raises(InvalidInputError) as refused:
        read(store)
    assert str(refused.value) == (
        f"{store.url(key)} has no format number: it was written by cycleqd 0.1; open it with cycleqd 0.1.0"
    )


@pytest.mark.parametrize("number", [0, formats.FORMAT + 1, -1, "1", None, 1.5])
def test_a_format_of_another_version_is_refused_with_its_number(store: Store, number: JSON) -> None:
    store.put("HEAD.json", json.dumps({"format": number, "snapshot": 3, "sha256": "00"}).encode())
    with pytest.raises(InvalidInputError, match=f"HEAD.json has format {number!r}, and this cycleqd reads formats 1 "):
        need_head(store)


@pytest.mark.parametrize("data", [b"[1]", b"3", b'"text"', b"", b"\xff", b'{"format":1'])
def test_what_is_no_json_object_is_named(store: Store, data: bytes) -> None:
    store.put("config.json", data)
    with pytest.raises(CycleQDError, match=r"empty/config\.json is not"):
        store.get_json("config.json")


def test_steps_lead_from_the_format_of_an_object_to_the_present_one(
    grown: Evolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two later formats: the second adds to what seals and digests are taken over, which stay those of the bytes."""
    steps = []

    def second(key: str, value: JSON) -> JSON:
        steps.append(key)
        return {**value, "maker": "unknown"} if key.startswith("archives/") else value

    def third(key: str, value: JSON) -> JSON:
        assert not key.startswith("archives/") or value["maker"] == "unknown", "the second step comes first"
        return value

    before = current(grown.store)[1]
    head = grown.store.get(layout.HEAD)
    now = formats.FORMAT
    monkeypatch.setattr(formats, "FORMAT", now + 2)
    monkeypatch.setattr(formats, "_STEPS", (*formats._STEPS, second, third))
    assert current(grown.store)[1].digest == before.digest
    assert need_plan(grown.store, 2).snapshot == load_state(grown.store, 2).digest
    assert load_config(grown.store).search_tasks == ("one", "two", "three")
    assert read_transcripts(grown.store, "base", "one", "search")
    assert {"HEAD.json", "config.json", "archives/000003.json", "generations/000002/plan.json"} <= set(steps)
    assert grown.store.get(layout.HEAD) == head, "reading rewrites nothing"
    steps.clear()
    assert formats.decode("x", formats.encode({"a": 1}), "s3://x") == {"a": 1} and steps == []
    assert f'"format":{now + 2}'.encode() in sealed({"a": 1})


def test_an_evolution_of_format_1_has_full_checkpoints() -> None:
    written = b'{"format": 1, "method": {"children": 2}, "models": {"base": "b"}, "tasks": {"t": {}}, "name": "old"}'
    assert formats.decode(layout.CONFIG, written, "s3://x") == {
        "method": {"children": 2, "baselines": {"task_arithmetic": []}},
        "models": {"base": "b", "weights": "dense"},
        "tasks": {"t": {"chat": {"reasoning": []}}},
        "name": "old",
    }
    assert formats.decode("HEAD.json", b'{"format": 1, "snapshot": 3}', "s3://x") == {"snapshot": 3}


def test_a_snapshot_of_format_2_keeps_what_was_kept_and_its_rule_for_ties() -> None:
    """The best by average (lost) was no elite and the best nowhere: it was cleaned up."""
    lines = [[-1, "expert-a", "A", [0.9, 0.1]], [-1, "expert-b", "B", [0.1, 0.9]], [0, "lost", "L", [0.8, 0.8]],
             [1, "elite", "E", [0.5, 0.8]]]  # fmt: skip
    elite = {"cell": [0], "model": {"id": "elite", "digest": "E"}, "scores": {"a": 0.5, "b": 0.8}}
    value = {"format": 2, "tasks": ["a", "b"], "archives": [{"quality": "a", "elites": [elite]}], "population": []}
    written = json.dumps({**value, "history": lines}).encode()
    found = formats.decode("archives/000002.json", written, "s3://x")
    assert found["best"] == {"id": "elite", "digest": "E"} and found["ties"] == "first"
    without = json.dumps({**value, "archives": [], "history": lines}).encode()
    assert formats.decode("archives/000002-1.json", without, "s3://x")["best"]["id"] == "expert-a"
    assert "best" not in formats.decode("HEAD.json", written, "s3://x")
