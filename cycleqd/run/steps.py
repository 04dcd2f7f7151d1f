"""The steps of an evolution: what is to run next, from the records in S3 alone.

A step is one run of one pipeline, under a name that depends on nothing but the evolution's state, so that any driver,
started at any time, finds the run of the step that is in flight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from components.aggregate.stage import compared
from components.update_archives.stage import seeded_models
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, find_head
from cycleqd.storage.frozen import extensions
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result
from cycleqd.storage.tuned import find_tuned
from pipelines.definitions import Kind


@dataclass(frozen=True)
class Step:
    """One pipeline run. `first` and `count` are the generations that it covers, 0 and 0 for the other kinds; of
    finalising, `first` is how often the evolution was extended before.
    """

    kind: Kind
    first: int = 0
    count: int = 0

    @property
    def name(self) -> str:
        """The name its runs go by: seeding, generation-000003, generations-000003-000006, finalising; after the first
        extension finalising-000001, as its run is another one.
        """
        if self.kind != "generation":
            return f"{self.kind}-{self.first:06d}" if self.first else self.kind
        last = self.first + self.count - 1
        return f"generation-{self.first:06d}" if self.count == 1 else f"generations-{self.first:06d}-{last:06d}"


def find_state(store: Store) -> State | None:
    """The current snapshot, None before seeding has ended.

    Args:
        store: The evolution.
    """
    return current(store)[1] if find_head(store) else None


def next_step(config: Config, store: Store, state: State | None) -> Step | None:
    """What is to run, None when the evolution is complete.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        state: The current snapshot, None before seeding has ended.
    """
    if state is None:
        return Step("seeding")
    if states.should_stop(config, state) is None:
        return generation_step(config, state.generation)
    return None if finalised(config, store, state) else finalising_step(store)


def finalising_step(store: Store) -> Step:
    """The run that builds and scores the final model, once more after each extension.

    Args:
        store: The evolution.
    """
    return Step("finalising", len([*extensions(store, store.get(layout.CONFIG))]))


def generation_step(config: Config, generation: int) -> Step:
    """The run that covers a generation: runs start at multiples of `place.generations_per_run`.

    Args:
        config: The evolution's configuration.
        generation: Its number, from 0.
    """
    count = config.place.generations_per_run
    first = generation - generation % count
    return Step("generation", first, min(count, config.method.generations - first))


def previous_step(config: Config, state: State | None) -> Step | None:
    """The step that made the current snapshot: its logging and cleaning may not have ended. None before seeding.

    Args:
        config: The evolution's configuration.
        state: The current snapshot, None before seeding has ended.
    """
    if state is None:
        return None
    return generation_step(config, state.generation - 1) if state.generation else Step("seeding")


def finalised(config: Config, store: Store, state: State) -> bool:
    """Whether the final model was built from this snapshot, and every score that finalising makes is recorded.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        state: The current snapshot.
    """
    claimed = store.find_json(layout.FINAL_PLAN)
    if claimed is None or claimed["sha256"] != state.digest:
        return False
    made = read_result(store, layout.stage("final", "make"))
    if made is None:
        return False
    tuned = find_tuned(store)
    if config.lambdas and tuned is None:
        return False
    models = compared(config, state, [part["id"] for part in made["inputs"]["models"]], tuned)
    wanted = {(model, task, "search") for model in models for task in config.search_tasks}
    wanted |= {(model, task, "test") for model in models for task in config.tasks}
    return all(store.exists(layout.result(layout.evaluation(*key))) for key in wanted)


def arguments(config: Config, step: Step, state: State | None) -> dict[str, Any]:
    """The parameters of a step's pipeline.

    Args:
        config: The evolution's configuration.
        step: Which run.
        state: The current snapshot, None before seeding has ended.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    common = {"evolution": config.name, "place": json.dumps(tree["place"])}
    if step.kind == "seeding":
        return {**common, "config": json.dumps(tree)}
    if step.kind == "generation":
        return {**common, "generation": step.first}
    return {**common, "models": compared(config, state, None) if state else seeded_models(config)}
