"""Generations, stop rules and report-only tasks are raised and added after seeding; nothing else is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.run.audit import trace, verify
from cycleqd.run.extend import extend
from cycleqd.run.steps import find_state, next_step
from cycleqd.search.config import parse
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.frozen import adopt, changes, task_files
from cycleqd.storage.objects import Store
from tests.evolution import Evolution

Change = dict[str, Any]


@pytest.fixture
def extensible(grown: Evolution) -> Iterator[Evolution]:
    """The shared evolution, without its extensions afterwards."""
    yield grown
    grown.store.delete_prefix("extensions")


def changed(made: Evolution, change: Callable[[Change], Any]) -> Evolution:
    tree = copy.deepcopy(made.tree)
    change(tree)
    return Evolution(parse(tree, "changed"))


def take_up(made: Evolution, store: Store) -> list[str]:
    record = extend(store, made.config, lambda task: None)
    return [] if record is None else list(changes(record))


def test_more_is_taken_up_and_recorded(extensible: Evolution) -> None:
    store = extensible.store
    more = changed(extensible, lambda tree: tree["method"].update(generations=5))
    with pytest.raises(ConflictError, match=r"different: method\.generations\).*`cycleqd extend`"):
        adopt(store, more.config)
    assert take_up(more, store) == ["method.generations 3 → 5"]
    config = load_config(store)
    assert config.method.generations == 5 and adopt(store, more.config).method.generations == 5
    assert take_up(more, store) == [], "once"
    assert take_up(changed(more, lambda tree: tree["method"].update(generations=9)), store)
    assert load_config(store).method.generations == 9
    step = next_step(load_config(store), store, find_state(store))
    assert step is not None and step.name == "generation-000003"


def test_flat_tasks_are_allowed_once_seeding_has_shown_them(evolution: Callable[..., Evolution]) -> None:
    made = evolution(evaluation={"allow_flat_tasks": False})
    made.seed()
    more = changed(made, lambda tree: tree["evaluation"].update(allow_flat_tasks=True))
    assert take_up(more, made.store) == ["evaluation.allow_flat_tasks False → True"]
    assert load_config(made.store).evaluation.allow_flat_tasks
    with pytest.raises(InvalidInputError, match="allow_flat_tasks cannot change"):
        take_up(made, made.store)


def _new_task(tree: Change, **more: Any) -> None:
    tree["tasks"] = {"late": {**tree["tasks"]["one"], **more}, **tree["tasks"]}


def test_a_report_only_task_is_copied_and_scored_when_finalising_again(extensible: Evolution) -> None:
    store = extensible.store
    more = changed(extensible, lambda tree: _new_task(tree, report_only=True))
    assert take_up(more, store) == ["task 'late' added"]
    config = load_config(store)
    assert [*config.tasks] == ["one", "two", "three", "late"] and config.search_tasks == ("one", "two", "three")
    assert adopt(store, more.config).tasks["late"].report_only, "wherever the file has it"
    assert store.exists("tasks/late/data/one.json") and "late" in task_files(store)
    step = next_step(config, store, find_state(store))
    assert step is not None and step.name == "finalising-000001", "its first run has ended, on Kubeflow under its name"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(seed=9), "seed cannot change after seeding"),
        (lambda tree: tree["method"].update(generations=2), "method.generations is 3 and can only be raised"),
        (lambda tree: tree["method"].update(stop={"patience": 4}), "method.stop.patience is no limit and can only be"),
        (lambda tree: tree["method"].update(children=3), "method.children cannot change after seeding"),
        (lambda tree: tree["tasks"]["one"]["split"].update(seed=4), "tasks.one.split.seed cannot change after seeding"),
        (lambda tree: _new_task(tree, report_only=True, data="/absent"), "task 'late': /absent is not there"),
    ],
)
def test_all_else_is_refused(extensible: Evolution, change: Callable[[Change], Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        take_up(changed(extensible, change), extensible.store)
    assert str(refused.value).startswith(said)
    assert not extensible.store.list("extensions")


def test_before_seeding_the_file_is_simply_changed(evolution: Callable[..., Evolution]) -> None:
    made = evolution()
    with pytest.raises(ConflictError, match="is not seeded yet"):
        take_up(made, made.store)


def test_an_altered_extension_is_noticed(extensible: Evolution) -> None:
    store = extensible.store
    for count in (5, 7):
        take_up(changed(extensible, lambda tree, n=count: tree["method"].update(generations=n)), store)
    first, second = (layout.result(layout.extension(number)) for number in (1, 2))
    store.put(first, store.get(second))
    with pytest.raises(IntegrityError, match=r"extensions/000001/result\.json extends another configuration"):
        load_config(store)


def test_the_lineage_tells_of_it(extensible: Evolution) -> None:
    store = extensible.store
    more = changed(extensible, lambda tree: _new_task(tree, report_only=True))
    take_up(more, store)
    found = trace(store, load_config(store), ["final"], ())
    assert [list(changes(record)) for record in found.extensions] == [["task 'late' added"]]
    assert "tasks/late/data/one.json" in found.objects
    assert not found.problems and not list(verify(store, found.objects, lambda done: None))


def test_an_evolution_goes_on_where_it_ended(evolution: Callable[..., Evolution], tmp_path: Path) -> None:
    made = evolution(method={"generations": 1, "grid": {"bins": 2}})
    made.seeding()
    made.generation()
    made.build_final()
    more = changed(made, lambda tree: tree["method"].update(generations=2))
    assert take_up(more, made.store)
    assert json.loads(more.select()[0])["generation"] == 1
    more.generation()
    more.build_final()
    state = find_state(made.store)
    assert state is not None and state.generation == 2
