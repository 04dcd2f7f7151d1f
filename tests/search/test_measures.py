"""Measures by hand on a tiny history."""

import pytest

from cycleqd.search import measures, state
from tests.search.world import TASKS, config, model

BASE = model("base", 0.1, 0.1, 0.1)
EXPERTS = [model("expert-code", 0.8, 0.2, 0.2), model("expert-db", 0.2, 0.6, 0.1), model("expert-os", 0.2, 0.1, 0.5)]
CHILDREN = [(0.3, 0.3, 0.3), (0.6, 0.5, 0.4), (0.7, 0.5, 0.3), (0.5, 0.5, 0.3)]


def snapshot() -> state.State:
    """Bins of 0.5 on every axis: in archive i, a cell says which of the other two scores exceed 0.5."""
    evolution = config({"grid": {"bounds": dict.fromkeys(TASKS, (0, 1)), "bins": 2}})
    current = state.seeded(evolution, BASE, EXPERTS)
    for scores in CHILDREN:
        plan = state.planned(evolution, current)
        current = state.updated(evolution, current, plan, [model(plan.children[0].id, *scores)])
    return current


def test_measures_by_hand() -> None:
    found = measures.measure(snapshot(), naive=model("naive", 0.3, 0.3, 0.2).scores)
    assert (found["best/code"], found["best/db"], found["best/os"]) == (0.8, 0.6, 0.5)
    # g000001-c00 and g000002-c00 tie at an average of 0.5: the earlier is the best model, its worst score 0.4
    assert (found["best_average"], found["worst_of_best"]) == (pytest.approx(0.5), 0.4)
    # archive code, cells (db, os): (0, 0) expert-code 0.8, (1, 0) expert-db 0.2
    # archive db, cells (code, os): (0, 0) expert-db 0.6, (1, 0) g000001-c00 0.5
    # archive os, cells (code, db): (0, 0) expert-os 0.5, (0, 1) expert-db 0.1, (1, 0) g000001-c00 0.4
    assert [found[f"coverage/{task}"] for task in TASKS] == [2 / 4, 2 / 4, 3 / 4]
    assert [found[f"qd_score/{task}"] for task in TASKS] == pytest.approx([1.0, 1.1, 1.0])
    assert found["diversity"] == 4 / 7
    assert (found["front_elites"], found["front_all"]) == (4, 5)  # g000002-c00 is no elite but on the front
    assert found["evaluations"] == 4
    assert found["evaluations_to_pass/best_expert"] == 2  # 0.4 by expert-code; the first child has 0.3
    assert found["evaluations_to_pass/naive"] == 1


def test_hypervolume_by_hand_and_its_reference() -> None:
    found = snapshot()
    front = measures.front_of_elites(found)
    # above (0.2, 0.1, 0.1), the experts' lowest: expert-db and expert-os touch the reference and add nothing
    lowest, code, child = {"code": 0.2, "db": 0.1, "os": 0.1}, 0.6 * 0.1 * 0.1, 0.4 * 0.4 * 0.3
    measured = measures.measure(found)
    assert measured["hypervolume_elites"] == pytest.approx(code + child - 0.4 * 0.1 * 0.1)
    assert measured["hypervolume_elites"] == measures.hypervolume(front, TASKS, lowest)
    assert measured["hypervolume_all"] > measured["hypervolume_elites"]
    assert measures.hypervolume(front, TASKS, dict.fromkeys(TASKS, 1.0)) == 0.0


def test_what_was_never_passed_is_left_out() -> None:
    seeded = state.seeded(config(), BASE, EXPERTS)
    assert "evaluations_to_pass/best_expert" not in measures.measure(seeded)
    assert measures.evaluations_to_pass(snapshot(), 0.5) is None  # equal is not more
