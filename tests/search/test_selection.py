"""Selection: γ by hand, sampling frequencies, fall-backs, mates, copies, and what a plan holds."""

import json
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from cycleqd.errors import ConflictError
from cycleqd.search import state
from cycleqd.search.algorithms import algorithm
from cycleqd.search.operators.copies.allow import Allow
from cycleqd.search.operators.copies.share import Share
from cycleqd.search.operators.selection.elite import Elite
from cycleqd.search.records import Plan, Scored, canonical
from cycleqd.search.state import State
from tests.search.world import TASKS, World, config, model

DRAWS = 12_000


def three(method: dict[str, Any] | None = None) -> tuple[Any, State]:
    """Three experts in three different cells of every archive, as in the hand computation of γ."""
    settings = config({"grid": {"bounds": dict.fromkeys(TASKS, (0, 1)), "bins": 10}, **(method or {})})
    experts = [
        model("expert-code", 0.8, 0.2, 0.35),
        model("expert-db", 0.4, 0.6, 0.15),
        model("expert-os", 0.2, 0.3, 0.55),
    ]
    return settings, state.seeded(settings, model("base", 0.1, 0.1, 0.1), experts)


def chances() -> dict[str, float]:
    """P_j by hand: norms (1, 0, 0.5), (1/3, 1, 0), (0, 1/4, 1) over α 0.5 … 0.8."""
    weights = {
        "expert-code": 0.8 * 0.5 * 0.65,
        "expert-db": 0.6 * 0.8 * 0.5,
        "expert-os": 0.5 * 0.575 * 0.8,
    }
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def frequencies(settings: Any, snapshot: State, focus: str = "code") -> Counter[tuple[str, str]]:
    rng = np.random.default_rng(5)
    pairs = (algorithm(settings).parents(snapshot, focus, rng) for _ in range(DRAWS))
    return Counter((a.model.id, b.model.id) for a, b in pairs)


def assert_close(counts: Counter[tuple[str, str]], expected: dict[tuple[str, str], float]) -> None:
    """Each frequency within five standard errors, and nothing else drawn."""
    assert set(counts) <= set(expected)
    for pair, chance in expected.items():
        assert abs(counts[pair] / DRAWS - chance) < 5 * np.sqrt(chance * (1 - chance) / DRAWS), pair


def test_gamma_by_hand() -> None:
    settings, snapshot = three()
    weights = settings.method.parents.gamma(snapshot.experts, TASKS)
    assert weights / weights.sum() == pytest.approx(list(chances().values()))


def test_a_task_on_which_all_are_equal_does_not_matter() -> None:
    models = [model("x", 0.5, 0.1, 0.3), model("y", 0.5, 0.2, 0.3)]
    weights = Elite().gamma(models, TASKS)
    assert weights[1] / weights[0] == pytest.approx(0.8 / 0.5)


def test_sampling_frequencies_match_the_paper() -> None:
    p = chances()
    expected = {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in permutations(p, 2)}
    assert_close(frequencies(*three()), expected)


def test_random_parents_are_uniform() -> None:
    settings, snapshot = three({"parents": {"kind": "random"}})
    assert_close(frequencies(settings, snapshot), dict.fromkeys(permutations(chances(), 2), 1 / 6))


def test_parents_that_weigh_nothing_are_drawn_uniformly() -> None:
    settings, snapshot = three({"parents": {"alpha_low": 0.0}})  # every expert is the worst at something: all γ are 0
    assert_close(frequencies(settings, snapshot), dict.fromkeys(permutations(chances(), 2), 1 / 6))


def test_an_archive_with_one_elite_falls_back_to_the_union() -> None:
    settings = config({"grid": {"bounds": {"code": (0, 1), "db": (0.9, 0.9), "os": (0.9, 0.9)}, "bins": 10}})
    experts = [
        model("expert-code", 0.8, 0.2, 0.2),
        model("expert-db", 0.2, 0.8, 0.2),
        model("expert-os", 0.4, 0.2, 0.8),
    ]
    snapshot = state.seeded(settings, model("base", 0.1, 0.1, 0.1), experts)
    assert [len(archive.elites) for archive in snapshot.archives] == [1, 3, 3]
    assert set(frequencies(settings, snapshot, "code")) == set(permutations(chances(), 2))


def test_a_fixed_axis_never_leaves_its_archive() -> None:
    grid = {"bounds": {"code": (0, 1), "db": (0.9, 0.9), "os": (0.9, 0.9)}, "bins": 10}
    settings = config({"focus": {"fixed": "code"}, "grid": grid})
    experts = [
        model("expert-code", 0.8, 0.2, 0.2),
        model("expert-db", 0.2, 0.8, 0.2),
        model("expert-os", 0.4, 0.2, 0.8),
    ]
    snapshot = state.seeded(settings, model("base", 0.1, 0.1, 0.1), experts)
    assert set(frequencies(settings, snapshot, "code")) == {("expert-code", "expert-code")}


def test_one_model_alone_is_paired_with_itself() -> None:
    settings = config({"grid": {"bins": 1}})
    best = model("expert-code", 0.9, 0.9, 0.9)
    snapshot = state.seeded(settings, model("base", 0.1, 0.1, 0.1), [best, model("expert-db", 0.1, 0.2, 0.3)])
    assert set(frequencies(settings, snapshot)) == {("expert-code", "expert-code")}


def neighbours_world(radius: int) -> tuple[Any, State]:
    """Archive 'code' has elites in cells (db, os) = (0, 0), (1, 1), (3, 1), (9, 9)."""
    settings = config({"grid": {"bounds": dict.fromkeys(TASKS, (0, 1)), "bins": 10}, "parents": {"neighbours": radius}})
    cells = {"a": (0.05, 0.05), "b": (0.15, 0.15), "c": (0.35, 0.15), "d": (0.95, 0.95)}
    experts = [model(name, 0.5, *at) for name, at in cells.items()]
    return settings, state.seeded(settings, model("base", 0.1, 0.1, 0.1), experts)


def test_neighbours_mate_and_loners_fall_back_to_the_archive() -> None:
    mates: dict[str, set[str]] = {}
    for first, second in frequencies(*neighbours_world(radius=1)):
        mates.setdefault(first, set()).add(second)
    assert mates == {"a": {"b"}, "b": {"a"}, "c": set("abd"), "d": set("abc")}
    mates = {}
    for first, second in frequencies(*neighbours_world(radius=2)):
        mates.setdefault(first, set()).add(second)
    assert mates == {"a": {"b"}, "b": {"a", "c"}, "c": {"b"}, "d": set("abc")}


def test_copies_share_their_weight() -> None:
    models = [
        model("x", 0.50, 0.5, 0.5),
        model("copy of x", 0.9, 0.9, 0.9, sha256="x"),
        model("near x", 0.52, 0.5, 0.49),
        model("other", 0.50, 0.8, 0.5),
    ]
    assert Share(epsilon=0.03).kin(models, TASKS).tolist() == [3.0, 2.0, 2.0, 1.0]
    assert Share().kin(models, TASKS).tolist() == [2.0, 2.0, 1.0, 1.0]  # digests alone
    assert Allow().kin(models, TASKS).tolist() == [1.0] * 4


def test_shared_copies_are_drawn_less() -> None:
    settings, snapshot = three({"parents": {"kind": "random"}, "copies": {"kind": "share", "epsilon": 0.001}})
    code, db, os = snapshot.experts
    twin = Scored(db.model, os.scores)
    experts = [code, db, Scored(type(db.model)("expert-os", twin.model.digest), twin.scores)]
    snapshot = state.seeded(settings, snapshot.base, experts)
    p = {"expert-code": 0.5, "expert-db": 0.25, "expert-os": 0.25}
    expected = {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in permutations(p, 2)}
    assert_close(frequencies(settings, snapshot), expected)


def test_turns() -> None:
    def turns(focus: Any, generations: int = 1) -> list[tuple[str, ...]]:
        return [algorithm(config({"focus": focus})).turn(generation) for generation in range(generations)]

    assert turns("cyclic", 4) == [("code",), ("db",), ("os",), ("code",)]
    assert turns("all", 2) == [TASKS, TASKS]
    assert turns("fixed", 2) == [("code",), ("code",)]
    assert turns({"fixed": "os"}, 2) == [("os",), ("os",)]


@pytest.mark.parametrize(
    ("method", "focus"),
    [
        ({"children": 2}, ["code", "code"]),
        ({"focus": "all", "children": 2}, ["code", "code", "db", "db", "os", "os"]),
        ({"focus": "all", "children": 2, "stop": {"evaluations": 3}}, ["code", "code", "db"]),
        ({"algorithm": "nsga2", "children": 2}, ["", ""]),
        ({"algorithm": "lexicase", "focus": "all"}, [""]),
    ],
)
def test_children_of_a_generation(method: dict[str, Any], focus: list[str]) -> None:
    world = World(config(method))
    plan = state.planned(world.config, world.seeded())
    assert list(plan.focus) == focus
    assert [child.id for child in plan.children] == [f"g000000-c{i:02d}" for i in range(len(focus))]


def test_a_plan_is_a_function_of_config_and_snapshot() -> None:
    world = World(config({"focus": "all", "children": 3}, seed=3))
    snapshot = world.step(world.seeded())
    plan = state.planned(world.config, snapshot)
    again = state.planned(world.config, State.from_json(json.loads(canonical(snapshot.to_json()))))
    assert canonical(plan.to_json()) == canonical(again.to_json())
    assert Plan.from_json(json.loads(canonical(plan.to_json()))) == plan
    assert (plan.generation, plan.snapshot) == (1, snapshot.digest)
    other = state.planned(config({"focus": "all", "children": 3}, seed=4), snapshot)
    assert not {child.omega for child in plan.children} & {child.omega for child in other.children}
    seeds = [child.mutation["seed"] for child in plan.children]
    assert len(set(seeds)) == 9 and all(0 <= seed < 2**53 for seed in seeds)


@pytest.mark.parametrize(
    ("settings", "record"),
    [
        ({}, {"kind": "svd", "mode": "additive", "w_max": 0.3, "embeddings": True}),
        ({"mode": "rescale"}, {"kind": "svd", "mode": "rescale", "w_max": 2.0, "embeddings": True}),
        ({"mode": "rescale", "w_max": 1.5}, {"kind": "svd", "mode": "rescale", "w_max": 1.5, "embeddings": True}),
        ({"kind": "gaussian"}, {"kind": "gaussian", "sigma": 0.0003}),
        ({"kind": "none"}, {"kind": "none"}),
    ],
)
def test_a_plan_holds_what_its_operators_are_and_draw(settings: dict[str, Any], record: dict[str, Any]) -> None:
    world = World(config({"mutation": settings}))
    child = state.planned(world.config, world.seeded()).children[0]
    mutation = dict(child.mutation)
    assert ("seed" in mutation) == (record["kind"] != "none")
    assert {key: value for key, value in mutation.items() if key != "seed"} == record
    assert {**child.crossover, "omega": None} == {
        "kind": "mean", "mu": 1.0, "sigma": 0.01, "min_total": 0.1, "omega": None,
    }  # fmt: skip
    assert dict(child.shares) == {p.id: w / sum(child.omega) for p, w in zip(child.parents, child.omega, strict=True)}


def test_nothing_is_planned_after_the_end() -> None:
    world = World(config({"generations": 1}))
    last = world.step(world.seeded())
    with pytest.raises(ConflictError, match="all 1 generations are done"):
        state.planned(world.config, last)
