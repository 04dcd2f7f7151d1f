"""Searches of merge coefficients: their points, what they record, and that they are rebuilt from records alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cycleqd.errors import InvalidInputError
from cycleqd.search import state
from cycleqd.search.algorithms import algorithm
from cycleqd.search.coefficients import CoefficientSearch
from cycleqd.search.config import Config
from cycleqd.search.operators.crossover.combination import LinearCombination
from cycleqd.search.records import canonical
from cycleqd.search.state import State
from tests.search.world import World, config


def searching(name: str, children: int, seed: int = 0, **crossover: Any) -> Config:
    method = {"algorithm": name, "children": children, "mutation": {"kind": "none"}, "generations": 99}
    return config({**method, "crossover": {"kind": "combination", **crossover}}, seed=seed)


def search_of(settings: Config) -> CoefficientSearch:
    found = algorithm(settings)
    assert isinstance(found, CoefficientSearch)
    return found


def optimised(search: CoefficientSearch, target: Sequence[float], generations: int) -> list[list[list[float]]]:
    """Every generation's points, where a point scores by its distance from the target."""
    rounds: list[list[float]] = []
    found = []
    for _ in range(generations):
        found.append(search.points(rounds))
        rounds.append([-float(np.linalg.norm(np.array(point) - target)) for point in found[-1]])
    return found


def distance(points: Sequence[Sequence[Sequence[float]]], target: Sequence[float]) -> float:
    return min(float(np.linalg.norm(np.array(point) - target)) for line in points for point in line)


def test_one_lambda_is_tried_over_the_range_and_then_closer_and_closer() -> None:
    points = optimised(search_of(searching("task_arithmetic", 3, own="nothing")), [0.8], 12)
    assert [[round(x, 4) for (x,) in line] for line in points[:3]] == [
        [0.3333, 0.6667, 1.0],
        [0.5, 0.6667, 0.8333],
        [0.75, 0.8333, 0.9167],
    ]
    assert distance(points, [0.8]) < 0.002
    assert all(0 <= x <= 1 for line in points for (x,) in line)


def test_lambdas_of_ones_own_begin_equal_and_take_turns() -> None:
    points = optimised(search_of(searching("task_arithmetic", 4)), [0.9, 0.4, 0.6], 31)
    assert all(len(set(point)) == 1 for point in points[0])
    for number, line in enumerate(points[1:]):
        moved = [i for i in range(3) if len({point[i] for point in line}) > 1]
        assert moved == [number % 3]
    assert distance(points, [0.9, 0.4, 0.6]) < 0.01


@pytest.mark.parametrize("own", [{}, {"own": "layers", "layers": 2}])
def test_cma_es_finds_what_random_search_does_not(own: dict[str, Any]) -> None:
    search = search_of(searching("cmaes", 8, **own))
    target = np.linspace(0.1, 1.3, search.size).tolist()  # partly out of the range
    drawn = np.random.default_rng(0).uniform(0, 1, (60 * 8, search.size))
    lucky = float(np.linalg.norm(drawn - target, axis=1).min())
    assert distance(optimised(search, target, 60), target) < 0.02 < lucky


def test_cma_es_depends_on_the_seed_and_on_the_records_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    world = World(searching("cmaes", 6, seed=5))
    snapshots = [world.seeded()]
    for _ in range(4):
        snapshots.append(world.step(snapshots[-1]))
    read = State.from_json(json.loads(canonical(snapshots[-1].to_json())))
    np.random.seed(1)
    assert algorithm(world.config).ask(read) == algorithm(world.config).ask(snapshots[-1])
    np.random.seed(1)
    after = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    algorithm(world.config).ask(read)
    assert np.random.get_state()[1].tolist() == after != before  # type: ignore[union-attr]
    other = World(searching("cmaes", 6, seed=6))
    first = [algorithm(w.config).ask(w.seeded()).children[0].omega for w in (world, other)]
    assert first[0] != first[1]


def test_what_cma_es_keeps_between_calls_changes_nothing() -> None:
    rounds = np.random.default_rng(0).random((6, 4)).tolist()
    once, afresh = search_of(searching("cmaes", 4)), searching("cmaes", 4)
    for told in (rounds[:2], rounds[:5], rounds[:5], rounds[:3], [*rounds[:2], rounds[5]]):
        assert once.points(told) == search_of(afresh).points(told)


def test_the_scores_of_a_generation_decide_the_next() -> None:
    search = search_of(searching("cmaes", 4))
    assert search.points([[0.1, 0.2, 0.3, 0.4]]) != search.points([[0.4, 0.3, 0.2, 0.1]])
    assert search.points([[0.1, 0.2]]) == search.points([[0.2, 0.1]])  # cut short by the budget: it teaches nothing


def test_children_combine_all_experts_and_say_so() -> None:
    world = World(searching("cmaes", 4, own="layers", layers=2))
    child = state.planned(world.config, world.seeded()).children[0]
    assert [parent.id for parent in child.parents] == ["expert-code", "expert-db", "expert-os"]
    rows = child.crossover["coefficients"]
    assert [len(row) for row in rows] == [2, 2, 2]
    assert [share for _, share in child.shares] == list(child.omega) == [sum(row) / 2 for row in rows]
    other = replace(child, crossover={**child.crossover, "coefficients": [row[::-1] for row in rows]})
    assert other.omega == child.omega and other.origin != child.origin


@pytest.mark.parametrize("name", ["random_search", "task_arithmetic", "cmaes"])
def test_the_experts_and_the_best_average_are_kept(name: str) -> None:
    world = World(searching(name, 4))
    last = world.seeded()
    for _ in range(8):
        last = world.step(last)
        alive = {line.model.id for line in state.alive(world.config, last)}
        needed = {expert.model.id for expert in last.experts} | {line.model.id for line in last.bests.values()}
        assert alive == needed | {state.best_average(last).model.id}
        assert state.best_living(last) == state.best_average(last)
    assert state.best_average(last).model.id not in needed  # no task's best: the archives alone would lose it


def test_coefficients_of_layers_hold_for_the_tensors_of_their_layer() -> None:
    operator = LinearCombination(own="layers", layers=2)
    record = operator.record(operator.at([0.0, 1.0, 0.5, 0.25], 2))
    assert operator.coefficients(record, "model.layers.0.mlp.up_proj.weight") == [0.0, 0.5]
    assert operator.coefficients(record, "transformer.h.1.attn.weight") == [1.0, 0.25]
    assert operator.coefficients(record, "model.embed_tokens.weight") == [0.5, 0.375]
    with pytest.raises(InvalidInputError, match=r"layer 2 from 0, but method.crossover.layers is 2"):
        operator.coefficients(record, "model.layers.2.mlp.up_proj.weight")


@pytest.mark.parametrize(("own", "count"), [({"own": "nothing"}, 1), ({}, 3), ({"own": "layers", "layers": 4}, 12)])
def test_draws_are_uniform_in_the_range(own: dict[str, Any], count: int) -> None:
    operator = LinearCombination(low=-0.5, high=1.5, **own)
    rng = np.random.default_rng(0)
    drawn = [operator.draw(3, rng) for _ in range(2000)]
    assert all(len(draw["coefficients"]) == 3 for draw in drawn)
    values = np.array([[x for row in draw["coefficients"] for x in row] for draw in drawn])
    assert len({tuple(values[0])}) == 1 and len(set(values[0])) == count
    assert values.min() >= -0.5 and values.max() <= 1.5
    assert np.allclose(values.mean(axis=0), 0.5, atol=5 * 2 / np.sqrt(12 * 2000))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"algorithm": "cmaes", "children": 4},
            r"crossover 'mean' does not take; set method.crossover to",
        ),
        ({"algorithm": "task_arithmetic"}, "mutation 'svd' changes a child; set method.mutation to"),
        ({"algorithm": "cmaes", "children": 3}, "needs 4 children a generation or more, not 3"),
        ({"algorithm": "task_arithmetic"}, "set method.children to 2 or more"),
        (
            {"algorithm": "cmaes", "crossover": {"kind": "combination", "own": "nothing"}},
            "set method.crossover.own to parents or layers",
        ),
        ({"crossover": {"kind": "combination", "low": 1.0}}, "low is 1 and high 1: low must be below high"),
        ({"crossover": {"kind": "combination", "own": "layers"}}, "give the number of layers with own: layers"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_is_read(method: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        config(method)
