"""The same configuration and seed give the same parents, draws and elites as ever, for every variant of the method."""

import json
from pathlib import Path
from typing import Any

import pytest

from cycleqd.search import state
from cycleqd.search.records import Child, digest
from tests.search.test_state import VARIANTS
from tests.search.world import World, config

GOLDEN = Path(__file__).parent / "golden" / "draws.json"


def drawn(child: Child) -> list[Any]:
    return [child.id, [parent.id for parent in child.parents], list(child.omega), child.mutation.get("seed", 0)]


def history(method: dict[str, Any]) -> list[Any]:
    """What is drawn and what lives, generation by generation."""
    world = World(config({"generations": 9, "stop": {"evaluations": 16}, **method}, seed=3))
    found: list[Any] = []
    snapshot = world.seeded()
    while state.should_stop(world.config, snapshot) is None:
        plan = state.planned(world.config, snapshot)
        snapshot = state.updated(world.config, snapshot, plan, [world.born(child) for child in plan.children])
        living = [line.model.id for line in state.alive(world.config, snapshot)]
        found.append([plan.focus, [drawn(child) for child in plan.children], living])
    elites = [[e.model.id for e in archive.elites.values()] for archive in snapshot.archives]
    return [found, elites, [model.model.id for model in snapshot.population]]


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_draws_and_elites_are_the_same_as_ever(method: dict[str, Any]) -> None:
    """Regenerate the digests only when results are meant to change, and say so in the changelog."""
    assert digest(history(method)) == json.loads(GOLDEN.read_text())[str(method)]
