"""What an evolution no longer needs: checkpoints and cores of children that are nobody's elite, intermediates, broken
uploads, and what a client brought for seeding to copy.

Records stay, so that every collected model can be rebuilt from its lineage (`replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from cycleqd.search import state as states
from cycleqd.search.archive import union
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, Plan
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, find_manifest, find_plan
from cycleqd.storage.objects import Store


def clean(store: Store, config: Config, pins: Iterable[str] = ()) -> None:
    """Delete what nothing needs. Safe while a generation, a finalising and another cleaning are running.

    The listing comes first: a child that is in it has its plan in S3, so every use of its checkpoint is seen by the
    reads that follow, and what is written later is not in the listing. A late twin of a stage whose result exists may
    lose its upload, and then finds that result.

    Args:
        store: Objects of the evolution.
        config: Decides what the search may still select.
        pins: Ids of models to keep besides.
    """
    objects, cores = store.list("generations"), store.list(layout.CORES)
    head, state = current(store)
    kept = needed(store, config, head.snapshot, state) | set(pins)
    garbage = [key for key in objects if _is_garbage(key, kept, head.snapshot)]
    store.delete(garbage)
    dead = {layout.core(line.model.digest) for line in state.children if line.model.id not in kept}
    # no others: a finalising writes cores that no record names yet
    _delete_cores(store, config, dead.intersection(cores), kept, state)
    store.delete_prefix(layout.SOURCES)
    for key, upload in list(store.uploads()):
        if _is_copied(store, key) or _is_past(key, head.snapshot) or key.startswith(f"{layout.SOURCES}/"):
            store.abort_upload(key, upload)


def clean_cores(store: Store, config: Config, claimed: JSON, pins: Iterable[str] = ()) -> None:
    """Delete the cores that nothing needs, those of combined models that were replaced, too, as finalising ends.

    The listing comes first: a finalising that has written a core in it, and makes other models, has claimed by now.

    Args:
        store: Objects of the evolution.
        config: Decides what the search may still select.
        claimed: The claim of this finalising, whose models are recorded.
        pins: Ids of models to keep besides.
    """
    cores = store.list(layout.CORES)
    if not cores or store.get_json(layout.FINAL_PLAN) != claimed:
        return
    head, state = current(store)
    _delete_cores(store, config, cores, needed(store, config, head.snapshot, state) | set(pins), state)


def _delete_cores(store: Store, config: Config, cores: Iterable[str], kept: set[str], state: State) -> None:
    """Delete those cores that are of no expert, combined, kept or planned model: equal models share one.

    A planned child that is not made may turn out to be equal to any: then a later cleaning deletes them. Plans are
    read last, right before: a generation that is claimed after that makes its children after that.

    Args:
        store: Objects of the evolution.
        config: Names the combined models.
        cores: Keys.
        kept: Ids of models.
        state: HEAD's state.
    """
    garbage = set(cores)
    if not garbage:
        return
    known = {line.model.id: line.model.digest for line in state.history}
    kept = kept | {expert.model.id for expert in state.experts}
    garbage -= {layout.core(known[model]) for model in kept & known.keys()}
    children = [model for model in kept - known.keys() if layout.child_generation(model) is not None]
    for model in (*config.combined, *children):
        found = find_manifest(store, model)
        if found is not None:
            garbage.discard(layout.core(found.digest))
    for child in (child for plan in _plans(store, state.generation) for child in plan.children):
        found = find_manifest(store, child.id)
        if found is None:
            return
        garbage.discard(layout.core(found.digest))
    store.delete(garbage)


def needed(store: Store, config: Config, generation: int, state: State) -> set[str]:
    """Ids of the models whose checkpoints must stay: elites, parents in flight, what finalising and reports name.

    Args:
        store: Objects of the evolution.
        config: Decides what the search may still select.
        generation: First generation whose plan may still be worked on: HEAD's snapshot.
        state: HEAD's state.
    """
    models = members(config, state)
    for plan in _plans(store, generation):
        models |= {parent.id for child in plan.children for parent in child.parents}
    for key in (layout.FINAL_PLAN, layout.REPORT_MODELS):
        models |= set((store.find_json(key) or {"models": []})["models"])
    return models


def members(config: Config, state: State) -> set[str]:
    """Ids of the models that a snapshot holds: the elites of all archives, the population, the best on each task.

    Args:
        config: Decides what the search may still select.
        state: The snapshot.
    """
    found = {line.model.id for line in states.alive(config, state)}
    return found | {elite.model.id for elite in (*union(state.archives), *state.population)}


def _plans(store: Store, generation: int) -> Iterator[Plan]:
    """The plans of a generation and of those after it that were claimed."""
    for number in count(generation):
        plan = find_plan(store, number)
        if plan is None:
            return
        yield plan


def _is_garbage(key: str, kept: set[str], head: int) -> bool:
    """Whether an object is a checkpoint file of a past child that is not kept, or an intermediate of any past child."""
    match key.split("/"):
        case ["generations", _, "children", child, "checkpoint", *_]:
            return _is_past(key, head) and child not in kept
        case ["generations", _, "children", _, "merged", *_]:
            return _is_past(key, head)
    return False


def _is_past(key: str, head: int) -> bool:
    """Whether a key belongs to a generation that HEAD has passed: nothing writes there any more."""
    parts = key.split("/")
    return parts[0] == "generations" and int(parts[1]) < head


def _is_copied(store: Store, key: str) -> bool:
    """Whether a key belongs to the base or an expert whose copy is recorded, once and for all.

    Finalising may be making a combined model again, even if one is recorded: it aborts its old uploads itself.
    """
    parts = key.split("/")
    return (
        parts[0] == "models"
        and not layout.is_combined(parts[1])
        and store.exists(layout.result(layout.stage(parts[1], "make")))
    )
