"""select_parents: the plan of a generation, from the snapshot that HEAD names. Writing it is the claim.

Two claimants cannot plan one generation differently: the plan is written by a conditional PUT, and the second
one adopts what it finds. Also creates the MLflow runs of the generation and its children.
"""

from __future__ import annotations

import json

from cycleqd.errors import ConflictError
from cycleqd.search import state as states
from cycleqd.search.records import Plan
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, find_plan, load_config, need_head, need_plan
from cycleqd.storage.failures import recorded
from cycleqd.storage.formats import encode
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, describe_run, sealed
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged


def run(evolution: str, generation: int) -> str:
    """Claim a generation; its loop items, [{"generation": 0, "child": "g000000-c00"}, …] as JSON.

    Args:
        evolution: Name of the evolution.
        generation: The generation; -1: the next after HEAD.

    Raises:
        ConflictError: the generation is not the next one and was never planned.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "select-parents", str(generation)):
        plan = claim(store, need_head(store).snapshot if generation < 0 else generation)
        unlogged.catch_up(settings, store, load_config(store), [layout.generation(plan.generation)])
    return json.dumps([{"generation": plan.generation, "child": child.id} for child in plan.children])


def claim(store: Store, generation: int) -> Plan:
    """The generation's plan: found, or made and written unless another process was faster.

    Once the search is over it is the last generation's, which costs nothing to repeat: a run of several generations
    that a stop rule ends early succeeds, and so does a schedule's run past the end. (KFP collects from no empty loop.)

    Args:
        store: Objects of the evolution.
        generation: The generation, from 0.

    Raises:
        ConflictError: the generation is not the next one and was never planned.
    """
    clock, folder = Clock(), layout.generation(generation)
    found = find_plan(store, generation)
    if found is not None:
        return found
    head, state = current(store)
    if generation >= head.snapshot > 0 and states.should_stop(load_config(store), state):
        return need_plan(store, head.snapshot - 1)
    if generation != head.snapshot:
        raise ConflictError(
            f"generation {generation} of {store.url('')} starts from snapshot {generation}, but HEAD is at"
            f" {head.snapshot}; run generation {head.snapshot}"
        )
    plan = states.planned(load_config(store), state)
    store.create(layout.run(folder), encode(describe_run(clock)))
    store.put_json(layout.unlogged(folder), {})
    store.create(layout.plan(generation), sealed(plan.to_json()))
    return need_plan(store, generation)
