"""merge: one child from its parents, mutated on the way when the place is `fused`.

Reads the plan, the base and the parents; writes the child's checkpoint (fused), or the unmutated intermediate.
"""

from __future__ import annotations

from contextlib import ExitStack

from cycleqd.progress import counting
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.place import Place
from cycleqd.search.records import JSON, Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config, manifest_json, parse_place, planned_child, size_in_bytes
from cycleqd.storage.failures import recorded
from cycleqd.storage.models import device, opened, sink
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, once
from cycleqd.storage.settings import Settings
from cycleqd.tracking import logbook

METHOD_VERSION = 1
"""Raise when the bytes of a merged checkpoint may change."""


def run(evolution: str, item: str, place: str) -> None:
    """Make the child that a loop item names. Costs nothing when it has been made.

    Args:
        evolution: Name of the evolution.
        item: Loop item, JSON.
        place: The section `place` as JSON; with `fused` the child is mutated, too.
    """
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "merge", item):
        child = planned_child(store, item)
        make(store, load_config(store), child, where)
        logbook.log_making(settings, store, child.id, ["merge"])


def make(store: Store, config: Config, child: Child, place: Place) -> None:
    """Write the child's checkpoint and record.

    Args:
        store: Objects of the evolution.
        config: Its operators and shard size.
        child: The child as planned.
        place: Device, threads, cache, and whether to mutate in one go (`fused`).
    """
    inputs = {"child": child.to_json(), "fused": place.fused, "shard_size": config.models.shard_size}

    def compute(clock: Clock) -> JSON:
        from cycleqd.weights.merge import merge

        folder = layout.checkpoint(child.id) if place.fused else layout.merged(child.id)
        where = device(place)
        clock.facts["device"] = where
        with ExitStack() as stack:
            with clock.part("open"):
                base, *parents = stack.enter_context(opened(store, place, [child.base, *child.parents]))
            with clock.part("merge"):
                written = merge(
                    base,
                    parents,
                    Drawn(config.method.crossover, child.crossover),
                    sink(store, folder),
                    mutation=Drawn(config.method.mutation, child.mutation) if place.fused else None,
                    threads=place.threads,
                    device=where,
                    shard_size=size_in_bytes(config.models.shard_size),
                    progress=counting(child.id, "bytes merged", base.nbytes),
                )
        return {"checkpoint" if place.fused else "merged": manifest_json(written)}

    once(store, layout.stage(child.id, "merge"), "merge", METHOD_VERSION, inputs, compute)
