"""NSGA-II: survivors and tournaments."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.search.algorithms import nsga2
from tests.search.world import model

TASKS = ("a", "b")
# front 0: w, x, y, z along a line; front 1: u
POPULATION = tuple(
    model(name, *scores, tasks=TASKS)
    for name, scores in (("u", (0.1, 0.1)), ("w", (0.0, 1.0)), ("x", (0.1, 0.9)), ("y", (0.4, 0.5)), ("z", (1.0, 0.0)))
)


def names(models: tuple) -> list[str]:
    return [one.model.id for one in models]


def test_survivors_by_rank_then_crowding_in_their_old_order() -> None:
    assert names(nsga2.survivors(POPULATION, TASKS, 4)) == ["w", "x", "y", "z"]
    # x is the most crowded of the first front: (0.4 - 0) + (1 - 0.5) < (1 - 0.1) + (0.9 - 0)
    assert names(nsga2.survivors(POPULATION, TASKS, 3)) == ["w", "y", "z"]
    assert names(nsga2.survivors(POPULATION, TASKS, 9)) == names(POPULATION)


def test_ties_keep_the_earlier() -> None:
    twins = tuple(model(f"t{i}", 0.5, 0.5, tasks=TASKS) for i in range(4))
    assert names(nsga2.survivors(twins, TASKS, 2)) == ["t0", "t1"]


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=12), st.integers(1, 12))
def test_no_survivor_ranks_behind_one_left_out(scores: list, size: int) -> None:
    population = tuple(model(f"m{i}", a / 10, b / 10, tasks=TASKS) for i, (a, b) in enumerate(scores))
    keys = dict(zip(names(population), nsga2.order(population, TASKS), strict=True))
    kept = names(nsga2.survivors(population, TASKS, size))
    assert len(kept) == min(size, len(population))
    left = [name for name in keys if name not in kept]
    assert not left or max(keys[name] for name in kept) <= min(keys[name] for name in left)


def test_a_tournaments_winner_frequencies() -> None:
    # of two drawn out of five, the worst model never wins; each of the two extremes beats all but its equal
    wins = Counter(nsga2.tournament(POPULATION, TASKS, np.random.default_rng(seed))[0].model.id for seed in range(4000))
    assert "u" not in wins
    # w and z tie (infinite distance): 0.6 wins against the three others, half of the remaining 0.1; in 10 pairs
    assert abs(wins["w"] / 4000 - 0.35) < 0.04 and abs(wins["z"] / 4000 - 0.35) < 0.04
    assert abs(wins["y"] / 4000 - 0.2) < 0.03 and abs(wins["x"] / 4000 - 0.1) < 0.03


def test_parents_are_distinct_unless_there_is_one() -> None:
    for seed in range(200):
        first, second = nsga2.tournament(POPULATION[:2], TASKS, np.random.default_rng(seed))
        assert first.model != second.model
    alone = nsga2.tournament(POPULATION[:1], TASKS, np.random.default_rng(0))
    assert alone == (POPULATION[0], POPULATION[0])
