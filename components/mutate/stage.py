"""mutate: the mutation of a merged child as a task of its own, where the place does not fuse it into merge.

Reads the intermediate that merge wrote; writes the child's checkpoint: the same bytes as the fused way.
"""

from __future__ import annotations

from contextlib import ExitStack

from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import (
    load_config,
    manifest_from,
    manifest_json,
    parse_place,
    planned_child,
    size_in_bytes,
)
from cycleqd.storage.failures import recorded
from cycleqd.storage.models import device, opened, sink, source
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, need_result, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import logbook

METHOD_VERSION = 1
"""Raise when the bytes of a mutated checkpoint may change."""


def run(evolution: str, item: str, place: str) -> None:
    """Mutate the child that a loop item names. Costs nothing when that has been done, or when merge did it (`fused`).

    Args:
        evolution: Name of the evolution.
        item: Loop item, JSON.
        place: The section `place` as JSON.
    """
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "mutate", item):
        child = planned_child(store, item)
        if not where.fused:
            make(store, load_config(store), child, where)
            logbook.log_making(settings, store, child.id, ["merge", "mutate"])


def make(store: Store, config: Config, child: Child, place: Place) -> None:
    """Write the child's checkpoint and record.

    Args:
        store: Objects of the evolution.
        config: Its operators and shard size.
        child: The child as planned.
        place: Device, threads and cache.
    """
    merged = manifest_from(need_result(store, layout.stage(child.id, "merge"))["outputs"]["merged"])
    inputs = {"child": child.to_json(), "merged": merged.digest, "shard_size": config.models.shard_size}

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.checkpoint import open_checkpoint
        from cycleqd.weights.merge import mutate

        where = device(place)
        clock.facts["device"] = where
        with ExitStack() as stack:
            with clock.part("open"):
                (base,) = stack.enter_context(opened(store, place, [child.base]))
                unmutated = open_checkpoint(source(store, layout.merged(child.id), merged))
            with clock.part("mutate"):
                written = mutate(
                    base,
                    unmutated,
                    Drawn(config.method.mutation, child.mutation),
                    sink(store, layout.checkpoint(child.id)),
                    threads=place.threads,
                    device=where,
                    shard_size=size_in_bytes(config.models.shard_size),
                    progress=counting(child.id, "bytes mutated", base.nbytes),
                )
        return {"checkpoint": manifest_json(written)}

    once(store, layout.stage(child.id, "mutate"), "mutate", METHOD_VERSION, inputs, compute)
