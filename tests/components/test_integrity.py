"""Whatever is truncated or altered in S3 is noticed by its digest, named, and never scored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cycleqd.errors import IntegrityError
from cycleqd.evaluation.records import read_transcripts
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, load_config, load_state, need_head, need_plan
from cycleqd.storage.objects import Store
from tests.evolution import Evolution


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def truncated(data: bytes) -> bytes:
    return data[:-7]


@contextmanager
def damaged(store: Store, key: str, how: Callable[[bytes], bytes]) -> Iterator[None]:
    whole = store.get(key)
    store.put(key, how(whole))
    try:
        yield
    finally:
        store.put(key, whole)


def elite_child(evolution: Evolution) -> str:
    """A child whose checkpoint is kept."""
    keys = evolution.store.list("generations")
    return next(key.split("/")[3] for key in keys if "/checkpoint/" in key)


def unscored_weights(evolution: Evolution) -> str:
    """The weights of a child whose checkpoint is kept and that has no score on held-out samples."""
    keys = evolution.store.list("generations")
    scored = {key.split("/")[3] for key in keys if "/test/" in key}
    kept = (key for key in keys if "/checkpoint/" in key and key.endswith(".safetensors"))
    return next(key for key in kept if key.split("/")[3] not in scored)


@pytest.mark.parametrize("how", [flipped, truncated])
def test_a_damaged_checkpoint_is_never_scored(grown: Evolution, how: Callable[[bytes], bytes]) -> None:
    weights = unscored_weights(grown)
    child = weights.split("/")[3]
    with damaged(grown.store, weights, how), pytest.raises(IntegrityError, match=rf"{child}/checkpoint/model"):
        grown.evaluate([child], "test")
    assert not [key for key in grown.store.list(f"{layout.home(child)}/evaluations") if "/test/" in key]


@pytest.mark.parametrize("how", [flipped, truncated])
def test_a_damaged_parent_is_never_merged(evolution: Callable[..., Evolution], how: Callable[[bytes], bytes]) -> None:
    evo = evolution()
    evo.seeding()
    (item,) = evo.select()
    parent = need_plan(evo.store, 0).children[0].parents[0].id
    key = f"models/{parent}/checkpoint/model.safetensors"
    shutil.rmtree(os.environ["CYCLEQD_CACHE"])  # the evaluation's good copy
    with damaged(evo.store, key, how), pytest.raises(IntegrityError, match=f"{parent}/checkpoint"):
        evo.merge(item)
    assert [key for key in evo.store.list("generations") if "/children/" in key] == []


@pytest.mark.parametrize("how", [flipped, truncated])
@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("config.json", load_config),
        ("archives/000001.json", lambda store: load_state(store, 1)),
        ("archives/000003.json", current),
        ("generations/000001/plan.json", lambda store: need_plan(store, 1)),
        ("generations/000002/update/result.json", current),
        (
            "models/expert-a/evaluations/one/search/samples.jsonl.gz",
            lambda store: read_transcripts(store, "expert-a", "one", "search"),
        ),
    ],
)
def test_damaged_records_are_named(
    grown: Evolution, key: str, read: Callable[[Store], object], how: Callable[[bytes], bytes]
) -> None:
    read(grown.store)
    with damaged(grown.store, key, how), pytest.raises(IntegrityError, match=key):
        read(grown.store)


@pytest.mark.parametrize("key", ["tasks/two/data/two.json", "tasks/two/plugin.py"])
def test_damaged_task_files_are_named_and_not_used(evolution: Callable[..., Evolution], key: str) -> None:
    evo = evolution()
    evo.seed()
    with damaged(evo.store, key, lambda data: data + b"\n"), pytest.raises(IntegrityError, match=key):
        evo.evaluate(["base"])
    assert not [key for key in evo.store.list("models/base") if "evaluations" in key]


def test_an_altered_head_is_named(grown: Evolution) -> None:
    with damaged(grown.store, "HEAD.json", lambda data: data[:20]), pytest.raises(IntegrityError, match=r"HEAD\.json"):
        need_head(grown.store)
    other = b'{"edition":0,"format":1,"sha256":"' + b"0" * 64 + b'","snapshot":3}'
    with damaged(grown.store, "HEAD.json", lambda data: other), pytest.raises(IntegrityError, match="it was altered"):
        current(grown.store)
