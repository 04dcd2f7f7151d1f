"""Pictures: what they are drawn from, and bytes that depend on nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from cycleqd.report import curves, family, heatmaps, render, scores
from cycleqd.report.page import Picture, page
from cycleqd.report.theme import DARK, LIGHT
from cycleqd.search.archive import Archive
from cycleqd.search.grid import Axis, behaviour
from cycleqd.search.measures import measure
from cycleqd.search.operators.copies.allow import Allow
from cycleqd.search.state import State
from tests.report.sample import report
from tests.search.world import model

AXES = {"a": Axis(0.0, 1.0, 2), "b": Axis(0.0, 1.0, 3), "c": Axis(0.0, 1.0, 2), "d": Axis(0.0, 1.0, 2)}


def archive(quality: str, tasks: str, *scores: tuple[float, ...]) -> Archive:
    axes = {task: AXES[task] for task in tasks}
    found = Archive(quality, behaviour(axes, quality))
    for index, values in enumerate(scores):
        found = found.offer(model(f"m{index}", *values, tasks=tuple(tasks)), Allow())
    return found


def test_a_grids_rows_are_the_second_behaviour() -> None:
    found = heatmaps.maxima(archive("a", "abc", (0.5, 0.9, 0.1), (0.7, 0.1, 0.9)), (0, 1))
    assert found.shape == (2, 3)
    assert np.nan_to_num(found, nan=-1).tolist() == [[-1, -1, 0.5], [0.7, -1, -1]]


def test_a_strip_has_one_row() -> None:
    found = heatmaps.maxima(archive("a", "ab", (0.5, 0.5), (0.7, 0.9)), (0,))
    assert np.nan_to_num(found, nan=-1).tolist() == [[-1, 0.5, 0.7]]


def test_more_behaviours_are_seen_by_their_maxima() -> None:
    four = archive("a", "abcd", (0.5, 0.9, 0.1, 0.1), (0.7, 0.9, 0.1, 0.9), (0.2, 0.9, 0.9, 0.9))
    assert np.nan_to_num(heatmaps.maxima(four, (0, 1)), nan=-1).tolist() == [[-1, -1, 0.7], [-1, -1, 0.2]]
    assert np.nan_to_num(heatmaps.maxima(four, (1, 2)), nan=-1).tolist() == [[0.5, -1], [0.7, 0.2]]


@pytest.mark.parametrize("tasks", [("code", "db"), ("code", "db", "os"), ("code", "db", "os", "web")])
def test_heatmaps_are_pngs_whose_bytes_follow_from_the_snapshot(tasks: tuple[str, ...]) -> None:
    state = report({"generations": 6, "grid": {"bins": 4}}, tasks=tasks).state
    data = heatmaps.archives(state)
    assert data.startswith(b"\x89PNG")
    again = State.from_json(state.to_json())
    assert heatmaps.archives(again) == data != heatmaps.archives(state, DARK)
    assert b"Software" not in data and b"tIME" not in data


def test_a_flat_task_can_be_drawn() -> None:
    data = report({"generations": 3, "grid": {"bounds": {"code": (0, 1), "db": (0.5, 0.5), "os": (0, 1)}}})
    assert heatmaps.archives(data.state).startswith(b"\x89PNG")


def test_curves_end_at_the_snapshots_measures() -> None:
    data = report({"generations": 12})
    series = curves.measured(data)
    assert series["generation"] == [float(n) for n in range(13)]
    assert all(values[-1] == measure(data.state)[name] for name, values in series.items() if name != "generation")
    assert list(series["best_average"]) == sorted(series["best_average"])


def test_long_searches_are_thinned_but_keep_both_ends() -> None:
    series = curves.measured(report({"generations": 220, "grid": {"bins": 2}}))
    assert len(series["generation"]) == 200
    assert (series["generation"][0], series["generation"][-1]) == (0.0, 220.0)


def test_the_family_tree_holds_every_ancestor_once_and_shares_sum_to_one() -> None:
    data = report()
    tree = family.tree(data)
    assert list(tree)[-1] == "final"
    for name, member in tree.items():
        assert all(list(tree).index(parent) < list(tree).index(name) for parent, _ in member.parents)
        assert sum(member.experts.values()) == pytest.approx(1.0)
        if name in data.children:
            assert {parent for parent, _ in member.parents} == {p.id for p in data.children[name].parents}
    assert dict(tree["final"].parents) == dict(data.recipe)
    assert {name for name, member in tree.items() if not member.parents} <= {e.model.id for e in data.state.experts}


def test_a_large_family_is_drawn_in_part() -> None:
    data = report({"generations": 200, "mutation": {"mode": "rescale", "w_max": 3.0}, "grid": {"bins": 40}})
    tree = family.tree(data)
    drawn = family.drawn(tree)
    assert len(drawn) <= 3 + 48 and "final" in drawn
    assert len(list(family.lineage(data))) == len(tree)
    assert family.picture(data, LIGHT).startswith(b"\x89PNG")


def test_an_experts_colour_is_its_tasks_and_further_experts_of_a_task_differ() -> None:
    data = report({"generations": 1})
    hues = scores.expert_colours(data, LIGHT)
    assert [hues[f"expert-{task}"] for task in data.tasks] == list(LIGHT.hues[:3])
    models = data.config.models
    more = {"second": models.experts["db"], **models.experts}
    config = data.config.model_copy(update={"models": models.model_copy(update={"experts": more})})
    hues = scores.expert_colours(replace(data, config=config), LIGHT)
    assert len(set(hues.values())) == 4 and hues["expert-second"] == LIGHT.hues[1]


@pytest.mark.parametrize(
    ("method", "name"),
    [({}, "CycleQD"), ({"focus": "fixed"}, "MAP-Elites"), ({"algorithm": "nsga2"}, "NSGA-II")],
)
def test_the_method_is_named(method: dict[str, str], name: str) -> None:
    assert report({"generations": 1, **method}).rows[-1].label == f"{name}, aggregated"


def test_pictures_and_page_are_repeatable() -> None:
    data = report({"generations": 5}, watched={"math": 0.9})
    series = curves.measured(data)
    once, again = render.drawings(data, series), render.drawings(data, series)
    names = ["scores-test", "scores-search", "archives", "curves", "fronts", "forgetting", "family", "cost"]
    assert list(once) == names
    for name in ("scores-test", "fronts", "family"):
        assert once[name](LIGHT) == again[name](LIGHT)
    pictures = {name: Picture("light", "dark", 2, 2) for name in names}
    assert page(data, series, pictures) == page(data, series, pictures)
