"""merge: children from their parents; a dense child is mutated on the way when the place is `fused`.

Reads the plan, the base and the parents; writes the child's checkpoint (fused), or the unmutated intermediate. In the
span of low-rank experts parents and children are cores, and one task makes all children of a generation.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config, manifest_json, parse_place, planned_child
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged

METHOD_VERSION = 1
"""Raise when the bytes of a merged checkpoint may change."""


def run(evolution: str, children: Sequence[str], place: str) -> None:
    """Make children. Free for those that have been made.

    Args:
        evolution: Name of the evolution.
        children: Loop items, one a child.
        place: The section `place` as JSON.
    """
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "merge", *children):
        config = load_config(store)
        planned = [planned_child(store, item) for item in children]
        for child in planned:
            make(store, config, child, where)
        unlogged.catch_up(settings, store, config, [layout.stage(child.id, "merge") for child in planned])


def make(store: Store, config: Config, child: Child, place: Place) -> None:
    """Write a child's checkpoint and record.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
        place: Where to work.
    """
    fused = place.fused and not config.in_span
    inputs = {"child": child.to_json(), "fused": fused, "shard_size": config.models.shard_size}

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import merge_cores, merge_dense

        written = (
            merge_cores(store, config, child) if config.in_span else merge_dense(store, config, child, place, clock)
        )
        return {"checkpoint" if fused else "merged": manifest_json(written)}

    once(store, layout.stage(child.id, "merge"), "merge", METHOD_VERSION, inputs, compute)
