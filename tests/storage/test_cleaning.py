"""What cleaning keeps and what it deletes."""

from __future__ import annotations

import json
from collections.abc import Callable

from components.aggregate.stage import give_up_leftovers
from cycleqd.search.archive import union
from cycleqd.storage.cleaning import clean, needed
from cycleqd.storage.evolution import current, need_plan
from cycleqd.storage.objects import Store
from tests.evolution import Evolution


def kept(evolution: Evolution) -> set[str]:
    """Children whose checkpoints are in S3."""
    return {key.split("/")[3] for key in evolution.store.list("generations") if "/checkpoint/" in key}


def test_children_that_are_nobodys_elite_are_deleted(grown: Evolution) -> None:
    _, state = current(grown.store)
    assert state.best is not None
    elites = {elite.model.id for elite in union(state.archives)} | {state.best.id}
    children = {line.model.id for line in state.children}
    assert len(children) == 6
    assert kept(grown) == elites & children | {
        model for model in grown.store.get_json("final/plan.json")["models"] if model in children
    }
    assert kept(grown) < children, "the example should have something to delete"
    for model in ("base", "expert-a", "expert-b", "expert-c", "final", "naive"):
        assert any(key.endswith(".safetensors") for key in grown.store.list(f"models/{model}/checkpoint"))
    for child in children:
        assert grown.store.exists(f"generations/{child[1:7]}/children/{child}/merge/result.json")


def test_pins_reports_and_plans_in_flight_keep_models(evolution: Callable[..., Evolution]) -> None:
    evo = evolution()
    evo.seeding()
    evo.store.put_json("report/models.json", {"models": ["g000007-c00"]})
    evo.store.put_json("final/plan.json", {"models": ["g000008-c00"], "sha256": "of another snapshot"})
    evo.select()
    for child in ("g000007-c00", "g000008-c00", "g000009-c00"):
        evo.store.put(f"generations/000000/children/{child}/checkpoint/x", b"x")
    evo.store.put("generations/000000/children/g000000-c00/merged/x", b"x")
    state = current(evo.store)[1]
    parents = {parent.id for child in need_plan(evo.store, 0).children for parent in child.parents}
    assert parents | {"g000007-c00", "g000008-c00"} <= needed(evo.store, evo.config, 0, state)
    clean(evo.store, evo.config)
    assert kept(evo) == {"g000007-c00", "g000008-c00", "g000009-c00"}, "generation 0 is in flight"
    assert evo.store.exists("generations/000000/children/g000000-c00/merged/x")
    evo.generation(0)
    assert kept(evo) >= {"g000007-c00", "g000008-c00"}
    assert "g000009-c00" not in kept(evo)
    assert not evo.store.exists("generations/000000/children/g000000-c00/merged/x")


def test_pinned_children_stay(evolution: Callable[..., Evolution]) -> None:
    evo = evolution(place={"pins": ["g000000-c05"]})
    evo.seeding()
    evo.store.put("generations/000000/children/g000000-c05/checkpoint/x", b"x")
    evo.store.put("generations/000000/children/g000000-c06/checkpoint/x", b"x")
    evo.generation()
    assert "g000000-c05" in kept(evo) and "g000000-c06" not in kept(evo)


def test_unfinished_uploads_of_the_past_are_given_up(evolution: Callable[..., Evolution]) -> None:
    evo = evolution()
    evo.seeding()
    store = evo.store
    past, future, seeded = (
        "generations/000000/children/g000000-c00/checkpoint/x",
        "generations/000001/children/g000001-c00/checkpoint/x",
        "models/base/checkpoint/x",
    )
    for key in (past, future, seeded):
        store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key(key))
    evo.generation()
    assert [key for key, _ in store.uploads()] == [future]
    assert json.loads(store.get("HEAD.json"))["snapshot"] == 1


def begin_upload(store: Store, model: str) -> str:
    """What a killed run leaves, or one at work has."""
    key = f"models/{model}/checkpoint/x"
    store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key(key))
    return key


def test_uploads_of_combined_models_are_given_up_by_their_maker_alone(evolution: Callable[..., Evolution]) -> None:
    evo = evolution()
    evo.seeding()
    begin_upload(evo.store, "final")
    expert = begin_upload(evo.store, "expert-a")
    evo.aggregate()
    assert [key for key, _ in evo.store.uploads()] == [expert]
    again = begin_upload(evo.store, "final")  # by a finalising that makes the recorded model anew
    evo.update(-1)
    assert [key for key, _ in evo.store.uploads()] == [again]
    claimed = evo.store.get_json("final/plan.json")
    give_up_leftovers(evo.store, {**claimed, "snapshot": 1})  # it was another's claim
    assert [key for key, _ in evo.store.uploads()] == [again]
    give_up_leftovers(evo.store, claimed)
    assert not list(evo.store.uploads())


def test_what_a_client_brought_goes_once_head_is_there(evolution: Callable[..., Evolution]) -> None:
    evo = evolution()
    evo.seeding()
    evo.store.put("sources/models/base/model.safetensors", b"copied")
    key = evo.store.key("sources/models/base/other.safetensors")
    evo.store.client.create_multipart_upload(Bucket=evo.store.bucket, Key=key)
    evo.update(-1)
    assert evo.store.list("sources") == {} and list(evo.store.uploads()) == []
    assert evo.store.list("models/base/checkpoint")
