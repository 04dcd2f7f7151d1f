"""Lexicase: the filter, ε, verdicts as cases."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.search.algorithms import lexicase
from tests.search.world import model


def test_winning_frequencies_by_hand() -> None:
    # case order decides: 0 first → row 0; 1 first → row 1; 2 first → rows 1 and 2, then 0 → row 2, 1 → row 1
    cases = np.array([[0.9, 0.1, 0.1], [0.2, 0.9, 0.8], [0.4, 0.2, 0.8]])
    wins = Counter(lexicase.pick(cases, np.random.default_rng(seed)) for seed in range(6000))
    assert [round(wins[i] / 6000, 1) for i in range(3)] == pytest.approx([2 / 6, 3 / 6, 1 / 6], abs=0.04)


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=10), st.integers(0, 1000))
def test_a_pick_is_never_dominated(rows: list, seed: int) -> None:
    cases = np.array(rows, dtype=float)
    chosen = cases[lexicase.pick(cases, np.random.default_rng(seed))]
    assert not any((row >= chosen).all() and (row > chosen).any() for row in cases)


def test_epsilon_keeps_the_nearly_best() -> None:
    cases = np.array([[0.50], [0.49], [0.10]])
    assert {lexicase.pick(cases, np.random.default_rng(s)) for s in range(60)} == {0}
    assert {lexicase.pick(cases, np.random.default_rng(s), 0.02) for s in range(60)} == {0, 1}


def test_equal_models_are_drawn_uniformly() -> None:
    wins = Counter(lexicase.pick(np.ones((4, 3)), np.random.default_rng(s)) for s in range(4000))
    assert all(abs(wins[i] / 4000 - 0.25) < 0.03 for i in range(4))


def test_verdicts_as_cases_prefer_specialists_that_averages_hide() -> None:
    tasks = ("a", "b")
    bits = {"x": ("1100", "11"), "y": ("0011", "11"), "z": ("1000", "10")}
    population = [
        replace(
            model(name, sum(map(int, a)) / 4, sum(map(int, b)) / 2, tasks=tasks),
            verdicts={"a": tuple(c == "1" for c in a), "b": tuple(c == "1" for c in b)},
        )
        for name, (a, b) in bits.items()
    ]
    cases = lexicase.case_matrix(population, tasks, "samples")
    assert cases.tolist() == [[1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 1, 0]]
    assert lexicase.case_matrix(population, tasks, "scores").tolist() == [[0.5, 1.0], [0.5, 1.0], [0.25, 0.5]]
    assert {lexicase.pick(cases, np.random.default_rng(s)) for s in range(60)} == {0, 1}


def test_parents_are_distinct_unless_there_is_one() -> None:
    population = [model("x", 0.9, 0.9, 0.9), model("y", 0.1, 0.1, 0.1)]
    cases = lexicase.case_matrix(population, ("code", "db", "os"), "scores")
    assert lexicase.pair(population, cases, np.random.default_rng(0)) == (population[0], population[1])
    assert lexicase.pair(population[:1], cases[:1], np.random.default_rng(0)) == (population[0], population[0])
