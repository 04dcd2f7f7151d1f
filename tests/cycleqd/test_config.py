"""The configuration: paths, problems named, what is frozen."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cycleqd.config import Config, load, parse
from cycleqd.errors import InvalidInputError

TREE: dict[str, Any] = {
    "name": "evolution",
    "models": {
        "base": "models/base",
        "experts": {"a": {"path": "../a", "task": "code"}, "b": {"path": "s3://bucket/b/", "task": "db"}},
    },
    "tasks": {
        "code": {"class": "tasks/code.py:Code", "data": "data/code.jsonl"},
        "db": {"class": "package.module:DB", "data": "/data/db.jsonl"},
        "math": {"class": "package.module:Math", "data": "s3://bucket/math.jsonl", "report_only": True},
    },
}


def tree(**sections: Any) -> dict[str, Any]:
    return {**TREE, **sections}


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "evolution.yaml").write_text(yaml.safe_dump(tree(place={"folder": "run"})))
    monkeypatch.chdir(tmp_path)
    config = load(Path("configs/evolution.yaml"))
    folder = tmp_path / "configs"
    assert config.models.base == str(folder / "models/base")
    assert config.models.experts["a"].path == str(tmp_path / "a")
    assert config.models.experts["b"].path == "s3://bucket/b/"
    assert config.tasks["code"].class_ == f"{folder / 'tasks/code.py'}:Code"
    assert config.tasks["db"].class_ == "package.module:DB"
    assert [config.tasks[t].data for t in ("code", "db", "math")] == [
        str(folder / "data/code.jsonl"),
        "/data/db.jsonl",
        "s3://bucket/math.jsonl",
    ]
    assert config.place.folder == str(folder / "run")


def test_the_default_folder_is_beside_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "evolution.yaml").write_text(yaml.safe_dump(TREE))
    assert load(tmp_path / "evolution.yaml").place.folder == str(tmp_path / ".cycleqd")
    assert parse(TREE, "here").place.folder == ".cycleqd"


def test_the_frozen_config_is_a_config_and_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    method = {
        "focus": {"fixed": "db"},
        "grid": {"bounds": {"code": [0.1, 0.9], "db": [0, 1]}, "bins": {"code": 3, "db": 4}},
        "stop": {"evaluations": 9},
    }
    frozen = parse(tree(method=method), "here", tmp_path).frozen()
    assert str(tmp_path) not in str(frozen)
    assert "place" not in frozen
    again = Config.model_validate(frozen)
    assert again.frozen() == frozen
    assert again.method == parse(tree(method=method), "here").method
    assert again.models.experts["a"].path == "models/expert-a/checkpoint"
    assert again.tasks["code"].class_ == "tasks/code/plugin.py:Code"


def test_search_tasks_leave_out_those_that_are_only_reported() -> None:
    assert parse(TREE, "here").search_tasks == ("code", "db")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs"),
        ({"method": {"alpha": 1}}, "method.alpha: Extra inputs"),
        ({"method": {"parents": {"alpha_low": 0.9}}}, r"alpha_low 0.9 exceeds alpha_high 0.8"),
        ({"method": {"crossover": {"mu": 0}}}, "method.crossover.mu: .*greater than 0"),
        ({"method": {"crossover": {"min_total": 2}}}, "method.crossover.min_total: .*less than 2"),
        ({"method": {"grid": {"bins": 0}}}, "bins must be at least 1"),
        ({"method": {"grid": {"bins": {"code": 3}}}}, r"method.grid.bins must name exactly .*'db'"),
        ({"method": {"grid": {"bounds": {"code": [0.5, 0.2], "db": [0, 1]}}}}, r"'code' are \[0.5, 0.2\]"),
        ({"method": {"grid": {"bounds": {"code": [0, 2], "db": [0, 1]}}}}, "less than or equal to 1"),
        ({"method": {"focus": {"fixed": "math"}}}, "method.focus.fixed is 'math'"),
        ({"method": {"focus": {}}}, "method.focus"),
        ({"tasks": {"code": TREE["tasks"]["code"]}}, "tasks: Dictionary should have at least 2"),
        ({"name": "No Spaces"}, "name: String should match"),
    ],
)
def test_problems_are_named(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse(tree(**sections), "here")


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(tree(name="No", seed=-1, method={"children": 0}), "here.yaml")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["name", "seed", "method.children"]
    assert all(line.startswith("here.yaml: ") for line in lines)


def test_experts_and_tasks_must_fit() -> None:
    experts = {"a": {"path": "a", "task": "code"}}
    with pytest.raises(InvalidInputError, match="task 'db' has no expert"):
        parse(tree(models={"base": "b", "experts": experts}), "here")
    with pytest.raises(InvalidInputError, match="expert 'c' names task 'math'"):
        more = {**TREE["models"]["experts"], "c": {"path": "c", "task": "math"}}
        parse(tree(models={"base": "b", "experts": more}), "here")


def test_a_file_that_is_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InvalidInputError, match="not valid YAML"):
        load(tmp_path / "bad.yaml")
