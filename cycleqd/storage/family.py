"""A model's family, from the plans and records in S3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cycleqd.search.operators import Parameters
from cycleqd.search.records import Child
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_child
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result


@dataclass(frozen=True)
class Member:
    """How a model was made: parents with their shares of its task vector; a child as its plan holds it."""

    parents: tuple[tuple[str, float], ...] = ()
    child: Child | None = None

    @property
    def mutation(self) -> Parameters | None:
        """A child's mutation, as its plan holds it."""
        return self.child.mutation if self.child else None


Family = Mapping[str, Member]


def family(store: Store, models: Iterable[str]) -> Family:
    """Models and all their ancestors, by id, each model before its ancestors; every parent of a member is a member.

    Args:
        store: The evolution.
        models: Ids of models that were made.
    """
    found: dict[str, Member] = {}
    waiting = list(models)[::-1]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = member(store, name)
            waiting += [parent for parent, _ in found[name].parents]
    return found


def member(store: Store, model: str) -> Member:
    """How one model was made. Base and experts have no parents.

    Args:
        store: The evolution.
        model: Id of a model that was made.
    """
    number = layout.child_generation(model)
    if number is not None:
        child = find_child(store, model, number)
        return Member(child.shares, child)
    if layout.is_combined(model):
        inputs = need_result(store, layout.stage(model, "make"))["inputs"]
        models = (part["id"] for part in inputs["models"])
        return Member(tuple(zip(models, inputs["coefficients"], strict=True)))
    return Member()
