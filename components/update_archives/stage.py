"""update_archives: offer a generation's children to the archives, write the snapshot, move HEAD, log, clean up.

The only writer of archives. Generation -1 is seeding: the bounds are fixed and the experts offered. Of two updates at
once one moves HEAD and the other finds it moved, which is no error when both made the same snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, Scored, canonical
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.cleaning import clean
from cycleqd.storage.evolution import Head, current, find_head, load_config, load_state, need_plan, parse_place
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, once
from cycleqd.storage.scores import scored_models
from cycleqd.storage.settings import Settings
from cycleqd.tracking import logbook

METHOD_VERSION = 1
"""Raise when a snapshot may differ for the same scores."""


def run(evolution: str, generation: int, place: str) -> None:
    """Make snapshot `generation` + 1 and HEAD name it; then log and clean up, also when that was done before."""
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "update-archives", str(generation)):
        config = load_config(store)
        models = seeded_models(config) if generation < 0 else [c.id for c in need_plan(store, generation).children]
        state = make(store, config, generation, models)
        move_head(store, Head(generation + 1, state.digest))
        logbook.log_update(settings, store, generation, models, state)
        clean(store, config, where.pins)


def seeded_models(config: Config) -> list[str]:
    """The base, then the experts, in the config's order."""
    return ["base", *(f"expert-{name}" for name in config.models.experts)]


def make(store: Store, config: Config, generation: int, models: Sequence[str]) -> State:
    """The next state, its snapshot and record written."""
    scored, evaluations = scored_models(store, config, models, verdicts=config.method.needs_verdicts)
    plan = None if generation < 0 else need_plan(store, generation)
    inputs = {
        "generation": generation,
        "snapshot": None if plan is None else plan.snapshot,
        "plan": None if plan is None else plan.to_json(),
        "evaluations": evaluations,
    }
    done: list[State] = []

    def compute(clock: Clock) -> JSON:
        with clock.part("update"):
            state = following(store, config, generation, scored)
        data = canonical(state.to_json())
        key = layout.snapshot(generation + 1)
        if not store.create(key, data) and store.get(key) != data:
            raise IntegrityError(
                f"{store.url(key)} exists and is not what the scores of generation {generation} give; it was altered or"
                " made by another version: delete it to make it again"
            )
        done.append(state)
        entered = {model: list(states.homes(state, model)) for model in models}
        return {"snapshot": generation + 1, "sha256": state.digest, "entered": entered}

    once(store, layout.update(generation), "update_archives", METHOD_VERSION, inputs, compute)
    return done[0] if done else load_state(store, generation + 1)


def following(store: Store, config: Config, generation: int, scored: Sequence[Scored]) -> State:
    """The state after a generation. Raises ConflictError when HEAD is not at the snapshot that it starts from."""
    if generation < 0:
        return states.seeded(config, scored[0], scored[1:])
    head, state = current(store)
    if head.snapshot != generation:
        raise ConflictError(
            f"generation {generation} of {store.url('')} updates snapshot {generation}, but HEAD is at {head.snapshot}"
        )
    return states.updated(config, state, need_plan(store, generation), scored)


def move_head(store: Store, target: Head) -> None:
    """Make HEAD name `target`, by a conditional write; a HEAD that is there or further already is left alone.

    Raises ConflictError when HEAD names another snapshot of that number, or is not the one before.
    """
    data = canonical(target.to_json())
    head = find_head(store)
    if head is None and target.snapshot == 0:
        store.create(layout.HEAD, data)
    elif head is not None and head.snapshot == target.snapshot - 1:
        store.replace(layout.HEAD, data, head.etag)
    head = find_head(store)
    reached = head is not None and head.snapshot >= target.snapshot
    if head is None or not reached or (head.snapshot == target.snapshot and head.sha256 != target.sha256):
        raise ConflictError(
            f"{store.url(layout.HEAD)} is {head.to_json() if head else 'missing'} and cannot be moved to"
            f" {target.to_json()}; another process changed it: look at `cycleqd status`"
        )
