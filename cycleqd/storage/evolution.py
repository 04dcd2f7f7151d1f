"""Reading an evolution's state from S3, verified: config, HEAD, snapshots, plans, checkpoints and scores."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, Child, ModelRef, Plan
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.formats import FORMAT, decode
from cycleqd.storage.frozen import parse_frozen
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Record, find_record, need_result, read_result
from cycleqd.weights.manifest import CORE, Manifest

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Head:
    """The one mutable object: which snapshot is current. `etag` is what a conditional write names."""

    snapshot: int
    sha256: str
    edition: int = 0
    etag: str = field(compare=False, default="")

    @property
    def position(self) -> tuple[int, int]:
        """Snapshot and edition: HEAD only ever moves to a greater one."""
        return self.snapshot, self.edition

    def to_json(self) -> JSON:
        """HEAD.json's content: all but the etag, which S3 gives it."""
        return {"snapshot": self.snapshot, "sha256": self.sha256, "edition": self.edition}


def load_config(store: Store) -> Config:
    """The frozen configuration.

    Args:
        store: Objects of the evolution.

    Raises:
        IntegrityError: it is not the one that was seeded.
    """
    data = store.get(layout.CONFIG)
    seeded, found = need_result(store, layout.SEED)["inputs"]["config"], hashlib.sha256(data).hexdigest()
    if found != seeded:
        raise IntegrityError(f"{store.url(layout.CONFIG)} has sha256 {found}, seeded was {seeded}; restore it")
    return parse_frozen(store, data)


def size_in_bytes(text: str) -> int:
    """Bytes of a size as configurations write it: "5GB" → 5000000000.

    Args:
        text: A number and KB, MB or GB (powers of 1000).
    """
    return int(float(text[:-2]) * _UNITS[text[-2:]])


def find_head(store: Store) -> Head | None:
    """HEAD, None before seeding has ended.

    Args:
        store: Objects of the evolution.

    Raises:
        IntegrityError: it was altered.
    """
    found = store.find_with_etag(layout.HEAD)
    if found is None:
        return None
    try:
        value = decode(layout.HEAD, found[0], store.url(layout.HEAD))
        return Head(int(value["snapshot"]), str(value["sha256"]), int(value["edition"]), found[1])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{store.url(layout.HEAD)} is not a HEAD ({error!r}); write"
            f' {{"edition": 0, "format": {FORMAT}, "sha256": …, "snapshot": n}} of the newest snapshot into it'
        ) from error


def need_head(store: Store) -> Head:
    """HEAD of an evolution that must have been seeded.

    Args:
        store: Objects of the evolution.

    Raises:
        ConflictError: seeding has not ended.
    """
    found = find_head(store)
    if found is None:
        raise ConflictError(f"{store.url('')} has no HEAD yet: run the seeding pipeline first")
    return found


def load_state(store: Store, number: int, edition: int = 0) -> State:
    """A snapshot, verified against the sealed record of its making.

    Args:
        store: Objects of the evolution.
        number: Generations done.
        edition: 0 for the snapshot that the update made, from 1 for those of rescorings.

    Raises:
        IntegrityError: snapshot or record are missing or were altered.
    """
    recorded = need_result(store, layout.maker(number, edition))["outputs"]["sha256"]
    key = layout.snapshot(number, edition)
    data = store.get(key)
    found = hashlib.sha256(data).hexdigest()
    if found != recorded:
        raise IntegrityError(
            f"{store.url(key)} has sha256 {found}, recorded was {recorded}; it was truncated or altered: restore it"
        )
    return State.from_json(decode(key, data, store.url(key)), found)


def current(store: Store) -> tuple[Head, State]:
    """HEAD and its snapshot.

    Args:
        store: Objects of the evolution.

    Raises:
        IntegrityError: HEAD does not name the snapshot that was recorded.
        ConflictError: seeding has not ended.
    """
    head = need_head(store)
    state = load_state(store, *head.position)
    if state.digest != head.sha256:
        raise IntegrityError(
            f"{store.url(layout.HEAD)} names sha256 {head.sha256} for snapshot {head.snapshot}, which has"
            f" {state.digest}; it was altered: restore it"
        )
    return head, state


def find_plan(store: Store, generation: int) -> Plan | None:
    """A generation's plan, None when it was not claimed.

    Args:
        store: Objects of the evolution.
        generation: Generation, from 0.

    Raises:
        IntegrityError: the seal is broken.
    """
    found = find_record(store, layout.plan(generation))
    return None if found is None else Plan.from_json(found.body)


def need_plan(store: Store, generation: int) -> Plan:
    """The plan of a generation that must have been claimed.

    Args:
        store: Objects of the evolution.
        generation: Generation, from 0.

    Raises:
        ConflictError: the generation was not claimed.
    """
    return Plan.from_json(need_plan_record(store, generation).body)


def need_plan_record(store: Store, generation: int) -> Record:
    """The sealed record that the plan of a claimed generation is.

    Args:
        store: Objects of the evolution.
        generation: Generation, from 0.

    Raises:
        ConflictError: the generation was not claimed.
    """
    found = find_record(store, layout.plan(generation))
    if found is None:
        raise ConflictError(f"generation {generation} of {store.url('')} has no plan: run select_parents first")
    return found


def manifest(store: Store, model: str) -> Manifest:
    """Files and digests of a model's checkpoint, from the record of the stage that made it.

    Args:
        store: Objects of the evolution.
        model: Model id.

    Raises:
        IntegrityError: no stage has made it.
    """
    found = find_manifest(store, model)
    if found is None:
        raise IntegrityError(
            f"model '{model}' of {store.url('')} has no checkpoint record: run the stage that makes it first"
        )
    return found


def find_manifest(store: Store, model: str) -> Manifest | None:
    """Files and digests of a model's checkpoint, None where no stage has made it.

    Args:
        store: Objects of the evolution.
        model: Model id.
    """
    for folder in layout.makers(model):
        body = read_result(store, folder)
        if body is not None and "checkpoint" in body["outputs"]:
            return manifest_from(body["outputs"]["checkpoint"])
    return None


def manifest_of(store: Store, model: ModelRef) -> Manifest:
    """Files and digests of a model's checkpoint, which must be the one that is wanted.

    Args:
        store: Objects of the evolution.
        model: Id and digest.

    Raises:
        IntegrityError: it was not made, or has another digest.
    """
    recorded = manifest(store, model.id)
    if recorded.digest != model.digest:
        raise IntegrityError(
            f"model '{model.id}' at {store.url(layout.checkpoint(model.id))} has digest {recorded.digest}, but"
            f" {model.digest} is wanted; it was made anew from something else"
        )
    return recorded


def manifest_json(value: Manifest) -> JSON:
    """A manifest as records hold it: digest, bytes and files.

    Args:
        value: The manifest.
    """
    files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in value.files.items()}
    return {"digest": value.digest, "size": value.size, "files": files}


def manifest_from(value: Any) -> Manifest:
    """The manifest that a record holds.

    Args:
        value: JSON that `manifest_json` made.
    """
    return Manifest.from_json(json.dumps({"files": value["files"]}))


def model_ref(store: Store, model: str) -> ModelRef:
    """A model and the digest of its checkpoint. Raises as `manifest` does.

    Args:
        store: Objects of the evolution.
        model: Model id.
    """
    return ModelRef(model, manifest(store, model).digest)


def core_key(store: Store, model: ModelRef) -> str:
    """Where a model in the span is: by its content, or in its home, where evolutions that began earlier have some.

    Args:
        store: Objects of the evolution.
        model: Id and digest.
    """
    keys = (layout.core(model.digest), f"{layout.checkpoint(model.id)}/{CORE}")
    return next((key for key in keys if store.exists(key)), keys[0])


def checkpoint_url(store: Store, model: str, recorded: Manifest) -> str:
    """URL of a model's checkpoint: a folder, in the span the one file of its core.

    Args:
        store: Objects of the evolution.
        model: Model id.
        recorded: Its files.
    """
    own = core_key(store, ModelRef(model, recorded.digest)) if recorded.is_core else layout.checkpoint(model)
    return store.url(own)


def planned_child(store: Store, item: str) -> Child:
    """The planned child that a loop item names.

    Args:
        store: Objects of the evolution.
        item: Loop item, JSON: {"generation": 12, "child": "g000012-c00"}.

    Raises:
        InvalidInputError: it is not a loop item, or the plan has no such child.
    """
    try:
        value = json.loads(item)
        generation, name = int(value["generation"]), str(value["child"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{item!r} is not a loop item ({error!r}); select_parents returns them as"
            ' {"generation": 12, "child": "g000012-c00"}'
        ) from error
    return find_child(store, name, generation)


def find_child(store: Store, name: str, generation: int) -> Child:
    """A child from its generation's plan.

    Args:
        store: Objects of the evolution.
        name: Id of the child.
        generation: Generation, from 0.

    Raises:
        InvalidInputError: the plan has no such child.
    """
    plan = need_plan(store, generation)
    for child in plan.children:
        if child.id == name:
            return child
    raise InvalidInputError(
        f"the plan of generation {generation} has no child '{name}'; its children are {[c.id for c in plan.children]}"
    )
