"""Sealed records: found again, noticed when altered, computed once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cycleqd.errors import IntegrityError
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, find_result, need_result, once, peak_memory, read_result


def test_a_stage_computes_once_and_then_only_reads(store: Store) -> None:
    calls: list[str] = []

    def compute(clock: Clock) -> JSON:
        with clock.part("work"):
            calls.append("called")
        return {"value": 1.5}

    assert once(store, "home", "merge", 1, {"a": "x"}, compute) == {"value": 1.5}
    before = {key: store.get(key) for key in store.list("")}
    assert once(store, "home", "merge", 1, {"a": "x"}, compute) == {"value": 1.5}
    assert calls == ["called"]
    assert {key: store.get(key) for key in store.list("")} == before
    assert set(before) == {"home/result.json", "home/run.json", layout.unlogged("home")}
    run = store.get_json("home/run.json")
    assert "work" in run["seconds"] and run["peak_memory"] > 10 << 20


@pytest.mark.parametrize(
    ("stage", "version", "inputs"), [("merge", 2, {"a": "x"}), ("merge", 1, {"a": "y"}), ("mutate", 1, {"a": "x"})]
)
def test_other_inputs_or_versions_do_not_match(store: Store, stage: str, version: int, inputs: JSON) -> None:
    once(store, "home", "merge", 1, {"a": "x"}, lambda clock: 1)
    assert find_result(store, "home", stage, version, inputs) is None
    assert once(store, "home", stage, version, inputs, lambda clock: 2) == 2


def test_peak_memory_counts_what_was_freed_and_living_children() -> None:
    program = "block = bytearray(100 << 20); del block; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        alone, both = peak_memory(child.pid), peak_memory(os.getpid())
        child.communicate(b"\n")
    assert 100 << 20 < alone < 200 << 20
    assert both >= alone + (10 << 20)
    assert peak_memory(child.pid) == 0


def test_the_mark_that_mlflow_lacks_a_record_is_there_before_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create

    def killed(key: str, data: bytes) -> bool:
        assert key != "home/result.json" or store.exists(layout.unlogged("home"))
        return create(key, data)

    monkeypatch.setattr(store, "create", killed)
    once(store, "home", "merge", 1, {}, lambda clock: 1)
    assert store.exists("home/result.json")


def test_an_altered_record_is_named(store: Store) -> None:
    once(store, "home", "merge", 1, {}, lambda clock: {"score": 0.5})
    record = store.get("home/result.json")
    assert record.count(b'"score":0.5') == 1
    store.put("home/result.json", record.replace(b'"score":0.5', b'"score":0.9'))
    with pytest.raises(IntegrityError, match=r"empty/home/result\.json does not have the sha256 it is sealed with"):
        read_result(store, "home")
    store.put("home/result.json", record[:40])
    with pytest.raises(IntegrityError, match=r"empty/home/result\.json is not JSON"):
        read_result(store, "home")


def test_a_missing_record_that_is_needed_is_named(store: Store) -> None:
    assert read_result(store, "home") is None
    with pytest.raises(IntegrityError, match=r"empty/home/result\.json is missing"):
        need_result(store, "home")


def test_a_failed_stage_leaves_no_record(store: Store) -> None:
    def fail(clock: Clock) -> JSON:
        raise IntegrityError("no")

    with pytest.raises(IntegrityError):
        once(store, "home", "merge", 1, {}, fail)
    assert store.list("") == {}
