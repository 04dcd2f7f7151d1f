"""The laws of an elitist archive."""

import json
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.search.archive import Archive, union
from cycleqd.search.grid import Axis, behaviour
from cycleqd.search.operators.copies.allow import Allow
from cycleqd.search.operators.copies.forbid import Forbid
from cycleqd.search.operators.copies.limit import Limit
from cycleqd.search.records import Scored, average, canonical
from tests.search.world import model

AXES = {"a": Axis(0.0, 1.0, 3), "b": Axis(0.2, 0.8, 4), "c": Axis(0.5, 0.5, 1)}
EMPTY = Archive("a", behaviour(AXES, "a"))

fractions = st.integers(0, 40).map(lambda n: n / 40)
score_lists = st.lists(st.tuples(fractions, fractions, fractions), min_size=1, max_size=25)


def rank(one: Scored) -> tuple[float, float]:
    """Quality, then the average."""
    return one.scores["a"], average(one.scores)


def offered(models: list[Scored], forbid: bool = False) -> Archive:
    archive = EMPTY
    for one in models:
        archive = archive.offer(one, Forbid() if forbid else Allow())
    return archive


def models_of(scores: list[tuple[float, float, float]]) -> list[Scored]:
    return [model(f"m{i}", *s, tasks=tuple(AXES)) for i, s in enumerate(scores)]


@settings(max_examples=200)
@given(score_lists, st.randoms(use_true_random=False))
def test_content_is_independent_of_the_order_of_non_tying_offers(scores: list, random: object) -> None:
    models = models_of(scores)
    ties = {
        y.model.id
        for x, y in combinations(models, 2)
        if rank(x) == rank(y) and EMPTY.grid.cell(x.scores) == EMPTY.grid.cell(y.scores)
    }
    models = [one for one in models if one.model.id not in ties]
    shuffled = list(models)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert canonical(offered(models).to_json()) == canonical(offered(shuffled).to_json())


@given(score_lists)
def test_no_elite_gets_worse_and_none_disappears(scores: list) -> None:
    archive = EMPTY
    for one in models_of(scores):
        grown = archive.offer(one, Allow())
        for cell, elite in archive.elites.items():
            assert grown.elites[cell] == elite or rank(grown.elites[cell]) > rank(elite)
        assert grown.coverage >= archive.coverage and grown.qd_score >= archive.qd_score
        archive = grown


@given(score_lists)
def test_each_cell_holds_the_first_best_of_what_was_offered_to_it(scores: list) -> None:
    models = models_of(scores)
    archive = offered(models)
    cells = {EMPTY.grid.cell(one.scores) for one in models}
    assert list(archive.elites) == sorted(cells)
    for cell in cells:
        rivals = [one for one in models if EMPTY.grid.cell(one.scores) == cell]
        assert archive.elites[cell] == max(rivals, key=rank)  # max keeps the first


@given(score_lists)
def test_offering_again_changes_nothing(scores: list) -> None:
    models = models_of(scores)
    archive = offered(models)
    assert offered(models + models) == archive


@given(score_lists)
def test_json_round_trip(scores: list) -> None:
    archive = offered(models_of(scores))
    assert Archive.from_json(json.loads(canonical(archive.to_json())), archive.grid) == archive


def test_a_better_one_replaces_the_incumbent_and_of_equal_quality_the_higher_average() -> None:
    first = model("x", 0.4, 0.5, 0.1, tasks=("a", "b", "c"))
    same, elsewhere_better, better = (model(i, q, 0.5, c, tasks=("a", "b", "c")) for i, q, c in
                                      (("y", 0.4, 0.1), ("z", 0.4, 0.2), ("w", 0.5, 0.0)))  # fmt: skip
    archive = EMPTY.offer(first, Allow())
    assert archive.offer(same, Allow()) is archive
    assert list(archive.offer(elsewhere_better, Allow()).elites.values()) == [elsewhere_better]
    assert list(archive.offer(better, Allow()).elites.values()) == [better]
    assert archive.offer(elsewhere_better, Allow(), "first") is archive
    assert list(archive.offer(better, Allow(), "first").elites.values()) == [better]


def test_a_model_and_its_copies_are_elites_of_so_many_archives() -> None:
    """First where it is furthest ahead; equal weights and equal origins are copies, elsewhere nothing is refused."""

    def homes(most: int, *models: Scored) -> list[list[str]]:
        archives = [Archive(task, behaviour(AXES, task)) for task in AXES]
        rule = Limit(archives=most)
        for one in models:
            archives = rule.offer(one, archives, "average")
        return [sorted(elite.model.id for elite in archive.elites.values()) for archive in archives]

    tasks = tuple(AXES)
    one = model("x", 0.2, 0.9, 0.5, sha256="same", tasks=tasks)
    copy = model("y", 0.9, 0.1, 0.1, sha256="same", tasks=tasks)
    assert homes(1, one) == [[], ["x"], []] and homes(2, one) == [[], ["x"], ["x"]]
    assert homes(3, one) == [["x"]] * 3
    assert homes(1, one, copy) == [[], ["x", "y"], []]  # another cell of the archive that is theirs
    siblings = [replace(model(name, *scores, tasks=tasks), origin="p") for name, scores in
                (("s", (0.2, 0.9, 0.5)), ("t", (0.9, 0.1, 0.1)))]  # fmt: skip
    assert homes(1, *siblings) == [[], ["s", "t"], []]
    filled = [model(name, *scores, tasks=tasks) for name, scores in
              (("f", (0.5, 0.25, 0.5)), ("g", (0.1, 0.9, 0.5)), ("h", (0.1, 0.3, 0.9)))]  # fmt: skip
    late = model("w", 0.49, 0.25, 0.5, tasks=tasks)  # nearest to the best of archive a, where its cell is taken
    assert homes(1, *filled, late) == [["f"], ["g"], ["h", "w"]]
    stranger = replace(model("u", 0.9, 0.1, 0.1, tasks=tasks), origin="q")
    assert homes(1, siblings[0], stranger) == [["u"], ["s"], []]


def test_forbidden_copies() -> None:
    one = model("x", 0.4, 0.3, 0.5, sha256="same", tasks=("a", "b", "c"))
    copy = model("y", 0.5, 0.7, 0.5, sha256="same", tasks=("a", "b", "c"))  # another cell: scores may differ by chance
    assert len(offered([one, copy]).elites) == 2
    assert list(offered([one, copy], forbid=True).elites.values()) == [one]


def test_coverage_and_qd_score_by_hand() -> None:
    # 4 × 1 cells; b = 0.35 is an edge (bin 0), 0.36 is bin 1
    archive = offered(models_of([(0.5, 0.35, 0.0), (0.7, 0.3, 1.0), (0.25, 0.36, 0.5)]))
    assert list(archive.elites) == [(0, 0), (1, 0)]
    assert archive.coverage == 2 / 4
    assert archive.qd_score == 0.7 + 0.25


def test_union_names_each_model_once() -> None:
    one, two = models_of([(0.5, 0.3, 0.5), (0.6, 0.7, 0.5)])
    other = Archive("b", behaviour(AXES, "b")).offer(one, Allow()).offer(two, Allow())
    assert union([offered([one, two]), other]) == (one, two)
