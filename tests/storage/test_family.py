"""A family reaches back to the models that nobody made here, whatever it begins with."""

from __future__ import annotations

import pytest

from cycleqd.storage import layout
from cycleqd.storage.evolution import find_child
from cycleqd.storage.family import Member, family, member
from tests.evolution import Evolution


def test_every_parent_is_a_member_and_founders_have_none(grown: Evolution) -> None:
    found = family(grown.store, ["final", "base"])
    assert next(iter(found)) == "final" and "base" in found
    assert all(parent in found for one in found.values() for parent, _ in one.parents)
    assert sum(share for _, share in found["final"].parents) == pytest.approx(1.0)
    founders = {name for name, one in found.items() if not one.parents}
    assert founders and founders <= {"base", *(f"expert-{name}" for name in grown.config.models.experts)}
    assert found["final"].mutation is None


def test_a_child_is_as_its_plan_holds_it(grown: Evolution) -> None:
    made = find_child(grown.store, "g000001-c00", 1)
    assert member(grown.store, "g000001-c00") == Member(made.shares, made)
    first, second = family(grown.store, ["g000000-c01", "g000000-c00"]), family(grown.store, ["g000000-c00"])
    assert next(iter(first)) == "g000000-c01" and set(second) <= set(first)
    assert {layout.child_generation(name) for name in second} == {0, None}
