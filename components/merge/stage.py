"""merge: children from their parents; a large one is mutated on the way (fused).

Reads the plan, the base and the parents; writes the child's checkpoint (fused), or the unmutated intermediate. In the
span of low-rank experts parents and children are cores.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_manifest, load_config, manifest_json, planned_child
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.results import Clock, matches, once, read_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged

METHOD_VERSION = 1
"""Raise when the bytes of a merged checkpoint may change."""


def run(evolution: str, children: Sequence[str], profile: str, fused: bool = False) -> None:
    """Make children. Free for those that have been made.

    Args:
        evolution: Name of the evolution.
        children: Loop items, one a child.
        profile: Names the place in S3.
        fused: Mutate, too; not in the span.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "merge", *children):
        config, where = load_config(store), load_place(store, profile)
        planned = [planned_child(store, item) for item in children]
        for child in planned:
            make(store, config, child, where, fused)
        unlogged.catch_up(settings, store, config, [layout.stage(child.id, "merge") for child in planned])


def make(store: Store, config: Config, child: Child, place: Place, fused: bool) -> None:
    """Write a child's checkpoint and record. One that was made in the other number of tasks has the same bytes.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
        place: Where to work.
        fused: Mutate, too.
    """
    folder = layout.stage(child.id, "merge")
    inputs = {"child": child.to_json(), "fused": fused, "shard_size": config.models.shard_size}
    other = matches(read_result(store, folder), "merge", METHOD_VERSION, {**inputs, "fused": not fused})
    if other and find_manifest(store, child.id) is not None:
        return

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import merge_cores, merge_dense

        if config.in_span:
            written = merge_cores(store, config, child)
        else:
            written = merge_dense(store, config, child, place, fused, clock)
        return {"checkpoint" if fused else "merged": manifest_json(written)}

    once(store, folder, "merge", METHOD_VERSION, inputs, compute)
