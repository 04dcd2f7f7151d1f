"""The steps of an evolution: what is to run next, from the records in S3 alone.

A step is one run of one pipeline, under a name that depends on nothing but the evolution's state, so that any driver,
started at any time, finds the run of the step that is in flight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, find_head
from cycleqd.storage.finalising import compared, finalised, seeded_models
from cycleqd.storage.frozen import extensions
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import keep, keep_place
from pipelines.definitions import Kind

_GENERATIONS = re.compile(r"generations?-(\d+)(?:-(\d+))?")


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

    @classmethod
    def named(cls, name: str) -> Step | None:
        """The step of a name, None for one that is no step's.

        Args:
            name: As above.
        """
        whole: dict[str, Kind] = {"seeding": "seeding", "finalising": "finalising"}
        if name in whole:
            return cls(whole[name])
        if (found := _GENERATIONS.fullmatch(name)) is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        return cls("generation", first, last - first + 1)


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


def arguments(config: Config, store: Store, step: Step, state: State | None) -> dict[str, Any]:
    """The parameters of a step's pipeline; what is too long for one is stored.

    Args:
        config: The evolution's configuration.
        store: The evolution.
        step: Which run.
        state: The current snapshot, None before seeding has ended.
    """
    common = {"evolution": config.name, "profile": keep_place(store, config.place)}
    if step.kind == "seeding":
        tree = config.model_dump(mode="json", by_alias=True, exclude={"place"})
        return {**common, "config": keep(store, config.name, tree)}
    if step.kind == "generation":
        return {**common, "generation": step.first}
    return {**common, "models": compared(config, state, None) if state else seeded_models(config)}
