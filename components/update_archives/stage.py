"""update_archives: offer a generation's children to the archives, write the snapshot, move HEAD, log, clean up.

The only writer of archives. Generation -1 is seeding: the bounds are fixed and the experts offered. Of two updates at
once one moves HEAD and the other finds it moved, which is no error when both made the same snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.search import state as states
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, Scored
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.cleaning import clean
from cycleqd.storage.evolution import (
    Head,
    current,
    find_head,
    load_config,
    load_state,
    need_plan,
    need_plan_record,
)
from cycleqd.storage.failures import recorded
from cycleqd.storage.finalising import seeded_models
from cycleqd.storage.formats import encode
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.results import Clock, once
from cycleqd.storage.scores import scored_models
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged

METHOD_VERSION = 1
"""Raise when a snapshot may differ for the same scores."""


def run(evolution: str, generation: int, profile: str) -> None:
    """Make the next snapshot and HEAD name it; then log and clean up, also when that was done before.

    Args:
        evolution: Name of the evolution.
        generation: The generation whose children are offered; -1: seeding.
        profile: Names the place in S3.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "update-archives", str(generation)):
        config, where = load_config(store), load_place(store, profile)
        models = seeded_models(config) if generation < 0 else [c.id for c in need_plan(store, generation).children]
        head = find_head(store)
        passed = head is not None and head.snapshot > generation  # even if its models have other scores by now
        state = load_state(store, generation + 1) if passed else make(store, config, generation, models)
        move_head(store, Head(generation + 1, state.digest))
        unlogged.catch_up(settings, store, config, [layout.update(generation)])
        clean(store, config, where.pins)


def make(store: Store, config: Config, generation: int, models: Sequence[str]) -> State:
    """The next state, its snapshot and record written.

    Args:
        store: Objects of the evolution.
        config: Method and tasks of the evolution.
        generation: The generation whose children are offered; -1: seeding.
        models: Ids of its children; of base and experts for seeding.

    Raises:
        ConflictError: the models are being scored anew.
    """
    if store.exists(layout.RESCORING):
        raise ConflictError(
            f"the models of {store.url('')} are being scored anew; wait for `cycleqd rescore`, or run it again"
        )
    scored, evaluations = scored_models(store, config, models, verdicts=algorithm(config).needs_verdicts)
    plan = None if generation < 0 else need_plan_record(store, generation)
    inputs = {
        "generation": generation,
        "snapshot": None if plan is None else plan.body["snapshot"],
        "plan": None if plan is None else plan.sha256,
        "evaluations": evaluations,
    }
    done: list[State] = []

    def compute(clock: Clock) -> JSON:
        with clock.part("update"):
            state = following(store, config, generation, scored)
        done.append(write_snapshot(store, state, 0))
        return outputs(done[0], 0, models)

    once(store, layout.update(generation), "update_archives", METHOD_VERSION, inputs, compute)
    return done[0] if done else load_state(store, generation + 1)


def write_snapshot(store: Store, state: State, edition: int) -> State:
    """Store a state, once; the state with the digest of its bytes.

    Args:
        store: Objects of the evolution.
        state: The state to store.
        edition: 0 for an update, from 1 for a rescoring.

    Raises:
        IntegrityError: another state is stored there.
    """
    data, key = encode(state.to_json()), layout.snapshot(state.generation, edition)
    if not store.create(key, data) and store.get(key) != data:
        raise IntegrityError(
            f"{store.url(key)} exists and is not what the models' scores give; it was altered or made by another"
            " version: delete it to make it again"
        )
    return replace(state, digest=hashlib.sha256(data).hexdigest())


def outputs(state: State, edition: int, models: Sequence[str]) -> JSON:
    """What a record holds of the snapshot that was made: which it is, its digest, the archives that each model is in.

    Args:
        state: The state as stored.
        edition: 0 for an update, from 1 for a rescoring.
        models: Ids of the models that were offered.
    """
    entered = {model: list(states.homes(state, model)) for model in models}
    return {"snapshot": state.generation, "edition": edition, "sha256": state.digest, "entered": entered}


def following(store: Store, config: Config, generation: int, scored: Sequence[Scored]) -> State:
    """The state after a generation.

    Args:
        store: Objects of the evolution.
        config: Method and tasks of the evolution.
        generation: The generation whose children are offered; -1: seeding.
        scored: Its children with their scores; base and experts for seeding.

    Raises:
        ConflictError: HEAD is not at the snapshot that the generation starts from.
    """
    if generation < 0:
        return states.seeded(config, scored[0], scored[1:])
    head, state = current(store)
    if head.snapshot != generation:
        raise ConflictError(
            f"generation {generation} of {store.url('')} updates snapshot {generation}, but HEAD is at {head.snapshot}"
        )
    return states.updated(config, state, need_plan(store, generation), scored)


def move_head(store: Store, target: Head) -> None:
    """Make HEAD name a snapshot, by a conditional write; a HEAD that is there or further already is left alone.

    The one before is the last edition of the snapshot before, or the edition before.

    Args:
        store: Objects of the evolution.
        target: The new HEAD.

    Raises:
        ConflictError: HEAD is neither of these, or names another snapshot of that number and edition.
    """
    data = encode(target.to_json())
    head = find_head(store)
    before = (target.snapshot, target.edition - 1)
    if head is None and target.position == (0, 0):
        store.create(layout.HEAD, data)
    elif head is not None and (head.position == before or (not target.edition and head.snapshot == before[0] - 1)):
        store.replace(layout.HEAD, data, head.etag)
    head = find_head(store)
    reached = head is not None and head.position >= target.position
    if head is None or not reached or (head.position == target.position and head.sha256 != target.sha256):
        raise ConflictError(
            f"{store.url(layout.HEAD)} is {head.to_json() if head else 'missing'} and cannot be moved to"
            f" {target.to_json()}; another process changed it: look at `cycleqd status`"
        )
