"""The same configuration and seed give the same parents, draws and elites as ever, for every variant of the method."""

import json
from pathlib import Path
from typing import Any

import pytest

from cycleqd.search import state
from cycleqd.search.algorithms import algorithm
from cycleqd.search.archive import Ties
from cycleqd.search.records import Child, digest
from tests.search.test_state import VARIANTS
from tests.search.world import World, config

GOLDEN = Path(__file__).parent / "golden"
KEPT: dict[Ties, str] = {"average": "draws.json", "first": "draws_format_2.json"}


def drawn(child: Child) -> list[Any]:
    return [child.id, [parent.id for parent in child.parents], list(child.omega), child.mutation.get("seed", 0)]


def history(method: dict[str, Any], ties: Ties) -> list[Any]:
    """What is drawn, and what may be selected or is the best on a task, generation by generation."""
    world = World(config({"generations": 9, "stop": {"evaluations": 16}, **method}, seed=3))
    found: list[Any] = []
    experts = [world.scored(f"expert-{task}") for task in world.tasks]
    snapshot = state.seeded(world.config, world.scored("base"), experts, ties)
    while state.should_stop(world.config, snapshot) is None:
        plan = state.planned(world.config, snapshot)
        snapshot = state.updated(world.config, snapshot, plan, [world.born(child) for child in plan.children])
        selected = {model.model.id for model in algorithm(world.config).pool(snapshot)}
        selected |= {line.model.id for line in snapshot.bests.values()}
        living = [line.model.id for line in snapshot.history if line.model.id in selected]
        found.append([plan.focus, [drawn(child) for child in plan.children], living])
    elites = [[e.model.id for e in archive.elites.values()] for archive in snapshot.archives]
    return [found, elites, [model.model.id for model in snapshot.population]]


@pytest.mark.parametrize("ties", KEPT)
@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_draws_and_elites_are_the_same_as_ever(method: dict[str, Any], ties: Ties) -> None:
    """Regenerate the digests only when results are meant to change, and say so in the changelog; of formats before 3,
    in which the first of equal models was better, never.
    """
    assert digest(history(method, ties)) == json.loads((GOLDEN / KEPT[ties]).read_text())[str(method)]
