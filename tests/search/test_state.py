"""Snapshots: what is refused, how they grow, and what they give at the end."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.search import rebuilt, state
from cycleqd.search.records import Scored, canonical
from cycleqd.search.state import State
from tests.search.world import TASKS, World, config, model

GOLDEN = Path(__file__).parent / "golden" / "snapshot_after_24.json"

SOFTMAX: dict[str, Any] = {"final": {"kind": "softmax"}}


def _merging(**crossover: Any) -> dict[str, Any]:
    """The operators of searches for coefficients."""
    return {"crossover": {"kind": "combination", **crossover}, "mutation": {"kind": "none"}}


VARIANTS: list[dict[str, Any]] = [
    {},
    {"focus": "fixed"},
    {"focus": {"fixed": "os"}},
    {"focus": "all"},
    {"children": 2},
    {"parents": {"kind": "random"}},
    {"parents": {"neighbours": 1}},
    {"mutation": {"kind": "gaussian"}},
    {"mutation": {"kind": "none"}},
    {"copies": {"kind": "forbid"}},
    {"copies": {"kind": "share", "epsilon": 0.03}},
    {"algorithm": "nsga2", "population": 6},
    {"algorithm": "lexicase", "population": 6},
    {"algorithm": "lexicase", "population": 6, "lexicase_epsilon": 0.02},
    {"algorithm": "lexicase", "population": 6, "lexicase_cases": "samples"},
    {"algorithm": "random_search", **_merging()},
    {"algorithm": "random_search", "children": 3},
    {"algorithm": "task_arithmetic", "children": 3, **_merging(own="nothing")},
    {"algorithm": "task_arithmetic", "children": 5, **_merging(own="layers", layers=2)},
]
CMAES: list[dict[str, Any]] = [  # apart: the last bits of its points depend on the machine's linear algebra
    {"algorithm": "cmaes", "children": 5, **_merging()},
    {"algorithm": "cmaes", "children": 5, **_merging(own="layers", layers=2)},
]

BASE = model("base", 0.1, 0.1, 0.1)
EXPERTS = [model("expert-code", 0.8, 0.2, 0.3), model("expert-db", 0.4, 0.6, 0.1), model("expert-os", 0.2, 0.3, 0.5)]

LIMITED: list[dict[str, Any]] = [
    {"copies": {"kind": "limit"}},
    {"copies": {"kind": "limit", "archives": 2}, "crossover": {"sigma": 0}, "children": 3},
]


def without_verdicts(snapshot: State) -> State:
    return replace(snapshot, population=tuple(replace(m, verdicts=None) for m in snapshot.population))


@pytest.mark.parametrize("method", VARIANTS + LIMITED + CMAES, ids=str)
def test_every_variant_runs_on_one_budget_and_round_trips(method: dict[str, Any]) -> None:
    world = World(config({"generations": 99, "stop": {"evaluations": 16}, **method}))
    snapshots = world.run()
    assert len(snapshots[-1].children) == 16
    for snapshot in snapshots:
        again = State.from_json(json.loads(canonical(snapshot.to_json())), "read")
        assert again == snapshot and again.digest == "read" and snapshot.digest == ""
        assert len(snapshot.population) <= (6 if "algorithm" in method else 0)
    again_all = list(rebuilt.replayed(world.config, snapshots[-1]))
    assert again_all == [without_verdicts(snapshot) for snapshot in snapshots]


@pytest.mark.parametrize("method", VARIANTS + LIMITED + CMAES, ids=str)
def test_the_same_scores_anew_give_the_same_archives(method: dict[str, Any]) -> None:
    world = World(config({"generations": 9, **method}))
    last = replace(world.run()[-1], digest="first")
    models = [world.scored(line.model.id) for line in last.history]
    again = rebuilt.rescored(world.config, last, world.scored("base"), models)
    assert replace(again, rescored=()) == last
    assert again.rescored == ("first",) and again.forgotten == 0


def test_a_rescoring_holds_new_scores_alone_and_counts_who_is_gone() -> None:
    world = World(config({"generations": 9, "children": 2, "grid": {"bins": 2}, "stop": {"evaluations": 20}}))
    last = replace(world.run()[7], digest="first")
    alive = {line.model.id for line in (*state.alive(world.config, last), *last.history[: len(last.experts)])}
    kept = [line for line in last.history if line.model.id in alive]
    assert len(last.experts) < len(kept) < len(last.history)
    models = [Scored(line.model, {**line.scores, "db": 1 - line.scores["db"]}) for line in kept]
    again = rebuilt.rescored(world.config, last, model("base", 0.1, 0.9, 0.1), models)
    assert {line.model.id: line.scores for line in again.history} == {m.model.id: m.scores for m in models}
    assert [line.generation for line in again.history] == [line.generation for line in kept]
    assert again.axes["db"] != last.axes["db"] and again.axes["os"] == last.axes["os"]
    assert again.evaluations == last.evaluations == len(last.children)
    assert state.remaining(world.config, again) == 20 - len(last.children)
    assert list(rebuilt.replayed(world.config, again))[-1].archives == again.archives
    plan = replace(state.planned(world.config, last), snapshot="first")
    children = [world.born(child) for child in plan.children]
    after = state.updated(world.config, again, plan, children)  # planned before the rescoring
    assert after.rescored == () and after.forgotten == again.forgotten
    with pytest.raises(ConflictError, match="does not belong to snapshot"):
        state.updated(world.config, again, replace(plan, snapshot="other"), children)


@pytest.mark.parametrize("method", VARIANTS + CMAES, ids=str)
def test_the_best_on_each_task_is_kept_and_is_its_archives_best_elite(method: dict[str, Any]) -> None:
    world = World(config({"generations": 12, **method}))
    for snapshot in world.run():
        needed = {line.model.id for line in state.alive(world.config, snapshot)}
        for archive in snapshot.archives:
            best = snapshot.bests[archive.quality]
            assert best.scores[archive.quality] == max(e.scores[archive.quality] for e in archive.elites.values())
            assert best.model.id in needed and archive.quality in state.homes(snapshot, best.model.id)
        possible = {parent.id for child in _next_children(world, snapshot) for parent in child.parents}
        assert possible <= needed


def _next_children(world: World, snapshot: State) -> tuple[Any, ...]:
    longer = world.config.model_copy(update={"method": world.config.method.model_copy(update={"generations": 99})})
    return state.planned(longer, snapshot).children


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.integers(1, 12))
def test_quality_coverage_and_history_never_shrink(seed: int, bins: int) -> None:
    snapshots = World(config({"generations": 8, "focus": "all", "grid": {"bins": bins}}, seed=seed)).run()
    for before, after in pairwise(snapshots):
        assert after.history[: len(before.history)] == before.history
        for old, new in zip(before.archives, after.archives, strict=True):
            assert new.coverage >= old.coverage
            assert all(new.elites[c].scores[old.quality] >= e.scores[old.quality] for c, e in old.elites.items())


def test_two_and_five_archives() -> None:
    for count in (2, 5):
        tasks = [f"t{i}" for i in range(count)]
        last = World(config({"generations": 7, "grid": {"bins": 4}}, tasks=tasks)).run()[-1]
        assert [archive.quality for archive in last.archives] == tasks
        assert all(archive.grid.shape == (4,) * (count - 1) for archive in last.archives)


def test_the_golden_snapshot() -> None:
    """24 generations, seed 7: regenerate only when results are meant to change, and say so in the changelog."""
    last = World(config({"generations": 24, "mutation": {"mode": "rescale"}}, seed=7)).run()[-1]
    assert canonical(last.to_json()) + b"\n" == GOLDEN.read_bytes()


def test_an_evolution_of_an_earlier_format_goes_on_as_it_did() -> None:
    """What formats 1 and 2 computed: the first of equal models stays."""
    before = json.loads(GOLDEN.with_name("snapshot_after_24_format_2.json").read_text())
    world = World(config({"generations": 24, "mutation": {"mode": "rescale"}}, seed=7))
    now = state.seeded(world.config, world.scored("base"), [world.scored(f"expert-{task}") for task in TASKS], "first")
    while state.should_stop(world.config, now) is None:
        now = world.step(now)
    assert now.to_json() == before | {"best": now.to_json()["best"], "ties": "first"}


@pytest.mark.parametrize("method", VARIANTS + LIMITED, ids=str)
def test_the_best_by_average_is_kept_and_is_what_best_takes(method: dict[str, Any]) -> None:
    world = World(config({"generations": 12, "grid": {"bins": 2}, "final": {"kind": "best"}, **method}))
    for snapshot in world.run():
        best = max(snapshot.history, key=lambda line: state.average(line.scores))
        assert state.best_living(snapshot) == best == state.best_average(snapshot)
        assert best in state.alive(world.config, snapshot)
        assert state.final_recipe(world.config, snapshot) == [(best.model, 1.0)]


def test_equal_models_are_told_apart_by_their_average() -> None:
    """The child equals the code expert on code, in its cell, and is better elsewhere; the last one is not better."""
    evolution, snapshot = grown({"grid": {"bins": 1}}, [(0.8, 0.2, 0.4), (0.8, 0.3, 0.3)])
    assert snapshot.bests["code"].model.id == "g000000-c00"
    assert [elite.model.id for elite in snapshot.archives[0].elites.values()] == ["g000000-c00"]
    older = state.seeded(evolution, BASE, EXPERTS, "first")
    plan = state.planned(evolution, older)
    older = state.updated(evolution, older, plan, [model(plan.children[0].id, 0.8, 0.2, 0.4)])
    assert older.ties == "first" and older.bests["code"].model.id == "expert-code"
    assert [elite.model.id for elite in older.archives[0].elites.values()] == ["expert-code"]


def test_seeding_offers_the_experts_and_not_the_base() -> None:
    snapshot = state.seeded(config(), model("base", 1.0, 1.0, 1.0), EXPERTS)
    assert snapshot.generation == 0
    assert [line.model.id for line in snapshot.history] == ["expert-code", "expert-db", "expert-os"]
    assert all(line.generation == state.SEEDING for line in snapshot.history)
    assert all(elite in snapshot.experts for archive in snapshot.archives for elite in archive.elites.values())


@pytest.mark.parametrize("score", [math.nan, -0.01, 1.01, math.inf])
def test_a_score_that_is_no_fraction_is_refused(score: float) -> None:
    with pytest.raises(InvalidInputError, match=r"'expert-db' scores .* a score is a fraction"):
        state.seeded(config(), BASE, [EXPERTS[0], model("expert-db", 0.4, score, 0.1)])


def test_a_missing_score_is_refused_and_others_are_dropped() -> None:
    with pytest.raises(InvalidInputError, match="'expert-os' has no score on task 'os'"):
        state.seeded(config(), BASE, [EXPERTS[0], model("expert-os", 0.1, 0.2, tasks=("code", "db"))])
    extra = replace(EXPERTS[0], scores={"math": 0.3, **EXPERTS[0].scores})
    assert list(state.seeded(config(), BASE, [extra]).experts[0].scores) == list(TASKS)


def test_whole_number_scores_have_one_form() -> None:
    snapshot = state.seeded(config(), BASE, [replace(EXPERTS[0], scores={"code": 1, "db": 1, "os": 1})])
    assert canonical(snapshot.experts[0].to_json()).count(b"1.0") == 3


def test_an_all_zero_task_stops_seeding_unless_allowed() -> None:
    flat = [model("expert-code", 0.8, 0.0, 0.3), model("expert-db", 0.4, 0.0, 0.1)]
    with pytest.raises(InvalidInputError, match="task 'db': every expert scores 0"):
        state.seeded(config(), BASE, flat)
    snapshot = state.seeded(config(evaluation={"allow_flat_tasks": True}), BASE, flat)
    assert snapshot.axes["db"].bins == 1


def test_missing_verdicts_are_refused_where_they_are_needed() -> None:
    with pytest.raises(InvalidInputError, match="'expert-code' comes without verdicts"):
        state.seeded(config({"algorithm": "lexicase", "lexicase_cases": "samples"}), BASE, EXPERTS)


def test_updates_take_only_their_own_plan_and_children() -> None:
    world = World(config({"children": 2}))
    first = world.seeded()
    plan = state.planned(world.config, first)
    children = [world.born(child) for child in plan.children]
    second = state.updated(world.config, first, plan, children)
    with pytest.raises(ConflictError, match=r"plan of generation 0 .* does not belong to snapshot 1"):
        state.updated(world.config, second, plan, children)
    with pytest.raises(IntegrityError, match="for the children"):
        state.updated(world.config, first, plan, children[::-1])
    with pytest.raises(IntegrityError, match="for the children"):
        state.updated(world.config, first, plan, children[:1])


def grown(method: dict[str, Any], children: list[tuple[float, float, float]]) -> tuple[Any, State]:
    """The three experts and then one child a generation, with given scores."""
    evolution = config({"generations": 99, **method})
    snapshot = state.seeded(evolution, BASE, EXPERTS)
    for scores in children:
        plan = state.planned(evolution, snapshot)
        snapshot = state.updated(evolution, snapshot, plan, [model(plan.children[0].id, *scores)])
    return evolution, snapshot


def test_the_final_model_by_hand() -> None:
    evolution, snapshot = grown({"final": {"kind": "softmax", "temperature": 0.5}}, [(0.7, 0.65, 0.45)])
    # best: the code expert 0.8; the child 0.65 on db; the os expert 0.5
    weights = [math.exp(score / 0.5) for score in (0.8, 0.65, 0.5)]
    recipe = state.final_recipe(evolution, snapshot)
    assert [ref.id for ref, _ in recipe] == ["expert-code", "g000000-c00", "expert-os"]
    assert [beta for _, beta in recipe] == pytest.approx([weight / sum(weights) for weight in weights])


def test_a_model_that_is_best_twice_counts_twice() -> None:
    evolution, snapshot = grown(SOFTMAX, [(0.7, 0.65, 0.6)])
    weights = [math.exp(score) for score in (0.8, 0.65, 0.6)]
    recipe = {ref.id: beta for ref, beta in state.final_recipe(evolution, snapshot)}
    assert recipe == pytest.approx(
        {"expert-code": weights[0] / sum(weights), "g000000-c00": (weights[1] + weights[2]) / sum(weights)}
    )


def test_one_model_that_is_best_everywhere_is_the_final_model() -> None:
    evolution, snapshot = grown(SOFTMAX, [(0.9, 0.9, 0.9)])
    assert [(ref.id, beta) for ref, beta in state.final_recipe(evolution, snapshot)] == [
        ("g000000-c00", pytest.approx(1.0))
    ]


@given(st.floats(0.01, 100))
def test_final_coefficients_sum_to_one(temperature: float) -> None:
    evolution, snapshot = grown(
        {"final": {"kind": "softmax", "temperature": temperature}}, [(0.3, 0.7, 0.7), (0.6, 0.2, 0.9)]
    )
    assert math.fsum(beta for _, beta in state.final_recipe(evolution, snapshot)) == pytest.approx(1.0)


@pytest.mark.parametrize(("aggregated", "single"), [((0.45, 0.5, 0.5), True), ((0.46, 0.5, 0.5), False)])
def test_the_better_of_two_and_a_tie_goes_to_the_single_model(aggregated: tuple[float, ...], single: bool) -> None:
    evolution, snapshot = grown({}, [(0.5, 0.5, 0.45), (0.7, 0.1, 0.1)])
    recipe = state.final_recipe(evolution, snapshot, dict(zip(snapshot.tasks, aggregated, strict=True)))
    best, both = state.best_living(snapshot).model, evolution.method.final.aggregate(snapshot)
    assert best.id == "g000000-c00" and len(both) == 3
    assert recipe == ([(best, 1.0)] if single else both)


def test_the_best_single_elite() -> None:
    evolution, snapshot = grown({"final": {"kind": "best"}}, [(0.5, 0.5, 0.45), (0.5, 0.45, 0.5)])
    assert [(ref.id, beta) for ref, beta in state.final_recipe(evolution, snapshot)] == [("g000000-c00", 1.0)]


def test_stopping() -> None:
    evolution, snapshot = grown({"stop": {"patience": 2}}, [])
    assert state.should_stop(evolution, snapshot) is None
    better, worse = (0.5, 0.5, 0.45), (0.1, 0.1, 0.1)
    evolution, snapshot = grown({"stop": {"patience": 2}}, [worse, better, better])
    assert state.should_stop(evolution, snapshot) is None
    evolution, snapshot = grown({"stop": {"patience": 2}}, [worse, better, better, worse])
    assert state.should_stop(evolution, snapshot) == "no better average for 2 generations"
    evolution, snapshot = grown({"stop": {"evaluations": 2}}, [worse, better])
    assert state.should_stop(evolution, snapshot) == "the budget of 2 evaluations is spent"
    assert state.remaining(evolution, snapshot) == 0
    evolution, snapshot = grown({"generations": 2}, [worse, better])
    assert state.should_stop(evolution, snapshot) == "all 2 generations are done"
