"""A model's family, from the plans and records in S3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.search.operators import Parameters
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_child
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result


@dataclass(frozen=True)
class Member:
    """How a model was made: parents with their shares of its task vector; a child's mutation, as its plan holds it."""

    parents: tuple[tuple[str, float], ...] = ()
    mutation: Parameters | None = None


Family = Mapping[str, Member]


def family(store: Store, model: str) -> Family:
    """A model and all its ancestors, by id; every parent of a member is a member."""
    found: dict[str, Member] = {}
    waiting = [model]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = member(store, name)
            waiting += [parent for parent, _ in found[name].parents]
    return found


def member(store: Store, model: str) -> Member:
    """How one model was made. Base and experts have no parents."""
    number = layout.child_generation(model)
    if number is not None:
        child = find_child(store, model, number)
        return Member(child.shares, child.mutation)
    if model in layout.COMBINED:
        inputs = need_result(store, layout.stage(model, "make"))["inputs"]
        return Member(
            tuple((part["id"], beta) for part, beta in zip(inputs["models"], inputs["coefficients"], strict=True))
        )
    return Member()
