"""Scoring again, after a task's method changed: scores of two method versions cannot be compared in one archive.

The base, the experts and the living children are scored by the present versions, and the current snapshot gets another
edition from these scores alone. Children that are gone cannot be scored: they leave the history and are only counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from components.update_archives.stage import METHOD_VERSION, move_head, outputs, write_snapshot
from cycleqd.errors import ConflictError
from cycleqd.evaluation.scoring import evaluate_all
from cycleqd.evaluation.secrets import withheld
from cycleqd.search import rebuilt
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.cleaning import clean, members
from cycleqd.storage.evolution import Head, current
from cycleqd.storage.finalising import seeded_models
from cycleqd.storage.formats import encode
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, find_record, once
from cycleqd.storage.scores import scored_models
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged


def rescore(settings: Settings, store: Store, config: Config) -> list[tuple[str, str]]:
    """Score again where a record is of another method version; the (model, task) pairs whose record changed. May be
    repeated.

    Killed, it leaves a mark in S3 that keeps others from changing the archives until it was run to its end.

    Args:
        settings: The services' addresses.
        store: The evolution.
        config: As it was frozen, with the place of this machine.

    Raises:
        ConflictError: Seeding has not ended, HEAD was moved meanwhile, or the search cannot go on from other scores.
    """
    head, state = current(store)
    if state.children and not algorithm(config).rescorable:
        raise ConflictError(
            f"algorithm '{config.method.algorithm}' plans by the scores of all children, and most are gone, so that"
            f" evolution '{config.name}' cannot be scored again; begin another one"
        )
    living = members(config, state)
    models = [*seeded_models(config), *(line.model.id for line in state.children if line.model.id in living)]
    before = named(store, config, models)
    begun = not store.create(layout.RESCORING, encode(head.to_json()))
    with withheld():
        evaluate_all(settings, store, config, config.place, models, config.search_tasks, "search", anew=True)
    after = named(store, config, models)
    changed = [pair for pair in after if after[pair] != before[pair]]
    if changed or begun:
        edit(store, config, head, state, models)
    store.delete([layout.RESCORING])
    if changed or begun:
        scored = [layout.evaluation(model, task, "search") for model, task in product(models, config.search_tasks)]
        unlogged.catch_up(settings, store, config, [*scored, layout.maker(*current(store)[0].position)])
        clean(store, config, config.place.pins)
    return changed


def named(store: Store, config: Config, models: Sequence[str]) -> dict[tuple[str, str], str | None]:
    """(model, task) → the sha256 of its record on the search split, None where there is none.

    Args:
        store: The evolution.
        config: The evolution's configuration.
        models: Ids of models.
    """
    found = {}
    for model, task in product(models, config.search_tasks):
        record = find_record(store, layout.result(layout.evaluation(model, task, "search")))
        found[model, task] = None if record is None else record.sha256
    return found


def edit(store: Store, config: Config, head: Head, state: State, models: Sequence[str]) -> None:
    """Write the next edition of HEAD's snapshot and its record, and make HEAD name it.

    Args:
        store: The evolution.
        config: The evolution's configuration.
        head: As it was read before.
        state: The snapshot that HEAD names.
        models: Base first, then all that the new edition holds.
    """
    (base, *scored), evaluations = scored_models(store, config, models, verdicts=algorithm(config).needs_verdicts)
    edition = head.edition + 1
    inputs = {
        "generation": head.snapshot - 1,
        "snapshot": state.digest,
        "plan": None,
        "evaluations": evaluations,
    }

    def compute(clock: Clock) -> JSON:
        with clock.part("update"):
            again = rebuilt.rescored(config, state, base, scored)
        return outputs(write_snapshot(store, again, edition), edition, models)

    folder = layout.maker(head.snapshot, edition)
    made = once(store, folder, "update_archives", METHOD_VERSION, inputs, compute)
    move_head(store, Head(head.snapshot, made["sha256"], edition))
