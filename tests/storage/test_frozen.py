"""A user's file against the frozen configuration: what it sets must agree, what it leaves out is as it was frozen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.search.config import Config, parse
from cycleqd.storage import layout
from cycleqd.storage.frozen import adopt, frozen_bytes
from cycleqd.storage.objects import Store

TREE: dict[str, Any] = {
    "name": "empty",
    "models": {
        "base": "/models/base",
        "experts": {"a": {"path": "/models/a", "task": "one"}, "b": {"path": "/models/b", "task": "two"}},
    },
    "tasks": {
        "one": {"class": "/mine/task.py:One", "data": "/data/one.json", "settings": {"low": 1}},
        "two": {"class": "package.module:Two", "data": "/data/two"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tree with one value set ("a.b.c"), or taken out where it is None."""
    tree = copy.deepcopy(TREE)
    *sections, key = path.split(".")
    part = tree
    for name in sections:
        part = part.setdefault(name, {})
    if value is None:
        del part[key]
    else:
        part[key] = value
    return tree


def freeze(store: Store, tree: dict[str, Any]) -> Config:
    config = parse(tree, "then")
    store.put(layout.CONFIG, frozen_bytes(config))
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 5),
        ("models.shard_size", "1GB"),
        ("tasks.one.split.seed", 9),
        ("tasks.two.generation", {"max_tokens": 7, "stop": ["x"]}),
        ("tasks.two.settings", {"rounds": 3}),
        ("evaluation.batch_tokens", 99),
        ("method.crossover.mu", 0.75),
        ("method.grid.bins", {"one": 3, "two": 4}),
        ("method.final.kind", "softmax"),
    ],
)
def test_what_a_file_leaves_out_is_as_it_was_frozen(store: Store, path: str, value: Any) -> None:
    """Whatever the default is today, and when some of it had another value then."""
    then = freeze(store, changed(path, value))
    now = parse({**TREE, "place": {"threads": 3}}, "now")
    assert now.frozen() != then.frozen()
    whole = adopt(store, now)
    assert whole.frozen() == then.frozen()
    assert whole.place.threads == 3
    assert whole.models == then.models and whole.tasks == then.tasks, "paths are the user's"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("seed", 5, "seed"),
        ("method.crossover.mu", 0.75, "method.crossover.mu"),
        ("tasks.two.split.share", 0.25, "tasks.two.split.share"),
        ("tasks.one.settings", {"low": 2}, "tasks.one.settings.low"),
        ("tasks.one.settings", {"low": 1, "high": 4}, "tasks.one.settings.high"),
        ("tasks.one.settings", {"low": 1.0}, "tasks.one.settings.low"),
        ("tasks.one.class", "/mine/task.py:Other", "tasks.one.class"),
        ("tasks.three", {"class": "package.module:Two", "data": "x", "report_only": True}, "tasks.three.class"),
        ("models.experts.c", {"path": "c", "task": "two"}, "models.experts.c.path"),
    ],
)
def test_what_a_file_sets_otherwise_is_refused_by_name(store: Store, path: str, value: Any, named: str) -> None:
    freeze(store, TREE)
    with pytest.raises(ConflictError, match=r"was started with another configuration \(different: ") as refused:
        adopt(store, parse(changed(path, value), "now"))
    assert named in str(refused.value).split("different: ")[1].split(")")[0].split(", ")


def test_a_default_that_is_written_out_is_compared(store: Store) -> None:
    """Who writes a value means it, also where it is today's default."""
    freeze(store, changed("method.crossover.mu", 0.75))
    with pytest.raises(ConflictError, match=r"different: method\.crossover\.mu\)"):
        adopt(store, parse(changed("method.crossover.mu", 1.0), "now"))


def test_a_task_that_is_taken_out_is_refused(store: Store) -> None:
    three = changed("tasks.three", {"class": "package.module:Two", "data": "x", "report_only": True})
    freeze(store, three)
    with pytest.raises(ConflictError, match=r"tasks\.three\.class, tasks\.three\.data"):
        adopt(store, parse(TREE, "now"))


def test_the_order_of_tasks_counts_and_paths_do_not(store: Store) -> None:
    freeze(store, TREE)
    moved = copy.deepcopy(TREE)
    moved["models"]["base"], moved["tasks"]["one"]["data"] = "/elsewhere/base", "/elsewhere/one.json"
    assert adopt(store, parse(moved, "now")).models.base == "/elsewhere/base"
    turned = {**TREE, "tasks": dict(reversed(TREE["tasks"].items()))}
    with pytest.raises(ConflictError, match="the order of its keys"):
        adopt(store, parse(turned, "now"))


def test_before_seeding_the_file_and_its_experts_decide(store: Store, tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    for name, expert in tree["models"]["experts"].items():
        (tmp_path / name).mkdir()
        expert["path"] = str(tmp_path / name)
    adopted = adopt(store, parse(tree, "now"))
    assert adopted == parse({**tree, "models": {**tree["models"], "weights": "dense"}}, "now")


def test_a_configuration_of_0_1_is_refused(store: Store) -> None:
    store.put(layout.CONFIG, b'{"name": "empty"}')
    with pytest.raises(InvalidInputError, match=r"open it with cycleqd 0\.1\.0"):
        adopt(store, parse(TREE, "now"))
