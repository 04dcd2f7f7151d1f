"""mutate: the mutation of merged children, where merge does not do it on the way.

Reads the intermediates that merge wrote; writes the children's checkpoints: the same bytes as the fused way. In the
span of low-rank experts both are cores.
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import (
    load_config,
    manifest_from,
    manifest_json,
    planned_child,
    size_in_bytes,
)
from cycleqd.storage.failures import recorded
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import load_place
from cycleqd.storage.results import Clock, need_result, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from cycleqd.weights.manifest import Manifest

METHOD_VERSION = 1
"""Raise when the bytes of a mutated checkpoint may change."""


def run(evolution: str, children: Sequence[str], profile: str) -> None:
    """Mutate children. Free for those that have been mutated, when they were merged or later.

    Args:
        evolution: Name of the evolution.
        children: Loop items, one a child.
        profile: Names the place in S3.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "mutate", *children):
        config, where = load_config(store), load_place(store, profile)
        mutated = []
        for item in children:
            child = planned_child(store, item)
            outputs = need_result(store, layout.stage(child.id, "merge"))["outputs"]
            if "merged" in outputs:
                make(store, config, child, where, manifest_from(outputs["merged"]))
                mutated.append(child.id)
        unlogged.catch_up(settings, store, config, [layout.stage(child, "mutate") for child in mutated])


def make(store: Store, config: Config, child: Child, place: Place, merged: Manifest) -> None:
    """Write a child's checkpoint and record.

    Args:
        store: The evolution.
        config: Its configuration.
        child: From the generation's plan.
        place: Where to work.
        merged: The intermediate.
    """
    inputs = {"child": child.to_json(), "merged": merged.digest, "shard_size": config.models.shard_size}

    def compute(clock: Clock) -> JSON:
        from cycleqd.storage.making import mutate_core, mutate_dense

        drawn = Drawn(config.method.mutation, child.mutation)
        if config.in_span:
            written = mutate_core(store, child, merged, drawn, place.threads)
        else:
            written = mutate_dense(store, child, merged, drawn, place, size_in_bytes(config.models.shard_size), clock)
        return {"checkpoint": manifest_json(written)}

    once(store, layout.stage(child.id, "mutate"), "mutate", METHOD_VERSION, inputs, compute)
