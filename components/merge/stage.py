"""merge: one child from its parents, mutated on the way when the place is `fused`.

Reads the plan, the base and the parents; writes the child's checkpoint (fused), or the unmutated intermediate.
"""

from __future__ import annotations

from contextlib import ExitStack

from components.shared import layout, logbook
from components.shared.evolution import load_config, manifest_json, parse_place, planned_child, size_in_bytes
from components.shared.failures import recorded
from components.shared.models import device, mutation_spec, opened, sink
from components.shared.progress import counting
from components.shared.settings import Settings
from components.shared.stage import Clock, once
from components.shared.store.objects import Store
from cycleqd.config import Config, Place
from cycleqd.records import JSON, Child

METHOD_VERSION = 1
"""Raise when the bytes of a merged checkpoint may change."""


def run(evolution: str, item: str, place: str) -> None:
    """Make the child that a loop item names. Free when it has been made."""
    settings, where = Settings.from_environment(), parse_place(place)
    store = Store.connect(settings, evolution)
    with recorded(store, "merge", item):
        child = planned_child(store, item)
        make(store, load_config(store), child, where)
        logbook.log_making(settings, store, child.id, ["merge"])


def make(store: Store, config: Config, child: Child, place: Place) -> None:
    """Write the child's checkpoint and record."""
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
                    child.omega,
                    sink(store, folder),
                    mutation=mutation_spec(child.mutation) if place.fused else None,
                    seed=child.mutation.seed,
                    threads=place.threads,
                    device=where,
                    shard_size=size_in_bytes(config.models.shard_size),
                    progress=counting(child.id, "bytes merged", base.nbytes),
                )
        return {"checkpoint" if place.fused else "merged": manifest_json(written)}

    once(store, layout.stage(child.id, "merge"), "merge", METHOD_VERSION, inputs, compute)
