"""The configuration: paths, problems named, what is frozen."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cycleqd.errors import InvalidInputError
from cycleqd.search.config import Config, load, parse, placed
from cycleqd.search.place import Images, image_of

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
        ({"colour": 1}, "colour: there is no such setting"),
        ({"method": {"alpha": 1}}, "method.alpha: there is no such setting"),
        ({"method": {"parents": {"alpha_low": 0.9}}}, r"alpha_low 0.9 exceeds alpha_high 0.8"),
        ({"method": {"crossover": {"mu": 0}}}, "method.crossover.mu: must be more than 0, not 0"),
        ({"method": {"crossover": {"min_total": 2}}}, "method.crossover.min_total: must be less than 2"),
        ({"method": {"grid": {"bins": 0}}}, "bins must be at least 1"),
        ({"method": {"grid": {"bins": {"code": 3}}}}, r"method.grid.bins must name exactly .*'db'"),
        ({"method": {"grid": {"bounds": {"code": [0.5, 0.2], "db": [0, 1]}}}}, r"'code' are \[0.5, 0.2\]"),
        (
            {"method": {"grid": {"bounds": {"code": [0, 2], "db": [0, 1]}}}},
            r"method.grid.bounds.code.1: must be at most 1, not 2",
        ),
        ({"method": {"focus": {"fixed": "math"}}}, "method.focus.fixed is 'math'"),
        ({"method": {"focus": {}}}, "method.focus"),
        ({"tasks": {"code": TREE["tasks"]["code"]}}, "tasks: must be at least 2 entries"),
        ({"place": {"weights": {"cpu": "two"}}}, "place.weights.cpu: .*'two' is not a Kubernetes quantity.*\"500m\""),
        ({"place": {"control": {"memory": "8 GB"}}}, "place.control.memory: .*'8 GB' is not a Kubernetes quantity"),
        ({"place": {"evaluate": {"shared_memory": "16GiB"}}}, "place.evaluate.shared_memory: .*'16GiB'"),
        (
            {"place": {"evaluate": {"gpu_type": "H100"}}},
            "place.evaluate.gpu_type: .*'H100' is not a Kubernetes resource",
        ),
        (
            {"place": {"evaluate": {"node_selector": {"a b": "c"}}}},
            "place.evaluate.node_selector.*'a b' is not .* label;",
        ),
        ({"place": {"evaluate": {"node_selector": {"a.b/c": "-d"}}}}, "node_selector.*'-d' is not .* label's value"),
        ({"place": {"evaluate": {"node_selector": {"/c": "d"}}}}, "node_selector.*'/c' is not a Kubernetes label;"),
        ({"place": {"evaluate": {"tolerations": [{"key": "x" * 64}]}}}, "tolerations.0.key: .* is not .* label;"),
        ({"place": {"evaluate": {"tolerations": [{"value": "a/b"}]}}}, "tolerations.0.value: .*'a/b' is not"),
        ({"place": {"engine_args": {"kv_cache_dtype": "fp8"}}}, "it is evaluation.engine_args.kv_cache_dtype"),
        (
            {"evaluation": {"engine": "vllm", "engine_args": {"max_num_seqs": 8}}},
            "it is place.engine_args.max_num_seqs",
        ),
        ({"evaluation": {"engine_args": {"max_model_len": 9}}}, "'max_model_len' .* it is evaluation.max_context"),
        ({"place": {"engine_args": {"tensor_parallel_size": 2}}}, "it is the GPUs of a pod, place.evaluate.gpu"),
        ({"evaluation": {"engine_args": {"quantization": "fp8"}}}, "weights are compared with the checkpoint's"),
        ({"place": {"engine_args": {"trust_remote_code": True}}}, "can be given here: gpu_memory_utilization, "),
        ({"place": {"engine_args": {"gpu_memory_utilization": 2}}}, "must be at most 1, not 2"),
        ({"evaluation": {"engine_args": {"kv_cache_dtype": "fp8"}}}, "the engine is auto: make it vllm or server"),
        ({"place": {"evaluate": {"tolerations": [{"kind": "x"}]}}}, "place.evaluate.tolerations.0.kind: there is no"),
        ({"place": {"image": "cycleqd/{stage}:1"}}, "place.image: there is no such setting"),
        ({"method": {"baselines": {"task_arithmetic": [0.1, 0.1]}}}, "values of λ must differ"),
        ({"method": {"baselines": {"task_arithmetic": [n / 10 for n in range(1, 14)]}}}, "must be at most 12 entries"),
        ({"method": {"baselines": {"task_arithmetic": [-1]}}}, r"task_arithmetic.0: must be at least 0\.001, not -1"),
        ({"name": "No Spaces"}, "name: must be lower-case letters and digits"),
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


def test_each_stage_has_one_of_three_images_and_its_resources() -> None:
    stages = ("seed", "select_parents", "merge", "mutate", "aggregate", "evaluate", "update_archives")
    assert [image_of(stage) for stage in stages] == [
        *("control", "control", "weights", "weights", "weights", "evaluate", "control"),
    ]
    images = {"weights": "registry.example/x/weights@sha256:0f"}
    place = parse(tree(place={"images": images, "weights": {"memory": "24Gi"}}), "here").place
    assert place.image("merge") == "registry.example/x/weights@sha256:0f"
    assert place.image("seed") == Images().control
    assert place.resources("aggregate").memory == "24Gi" and place.resources("seed").memory != "24Gi"


PROFILE = {
    "runner": "kubeflow",
    "tls_ca": "certificates/kfp.pem",
    "images": {"weights": "registry.example/weights:2"},
    "evaluate": {"gpu": 2, "node_selector": {"pool": "b"}},
    "pins": [],
}


def test_a_profile_is_laid_over_the_place(tmp_path: Path) -> None:
    """Sections key by key, values and lists as a whole; what it does not name stays; its paths are from its folder."""
    place = {
        "bucket": "mine",
        "folder": "state",
        "pins": ["base"],
        "images": {"weights": "weights:1", "evaluate": "evaluate:1"},
        "evaluate": {"memory": "48G", "gpu": 1, "node_selector": {"pool": "a", "zone": "c"}},
    }
    (tmp_path / "places").mkdir()
    (tmp_path / "evolution.yaml").write_text(yaml.safe_dump(tree(place=place)))
    (tmp_path / "places" / "cluster.yaml").write_text(yaml.safe_dump(PROFILE))
    under = load(tmp_path / "evolution.yaml")
    over = load(tmp_path / "evolution.yaml", tmp_path / "places" / "cluster.yaml")
    assert (over.place.runner, over.place.bucket, over.place.pins) == ("kubeflow", "mine", ())
    assert over.place.folder == str(tmp_path / "state")
    assert over.place.tls_ca == str(tmp_path / "places" / "certificates" / "kfp.pem")
    assert (over.place.images.weights, over.place.images.evaluate) == ("registry.example/weights:2", "evaluate:1")
    assert (over.place.evaluate.memory, over.place.evaluate.gpu) == ("48G", 2)
    assert over.place.evaluate.node_selector == {"pool": "b"}
    assert over.frozen() == under.frozen()


def test_a_profile_holds_nothing_but_a_place(tmp_path: Path) -> None:
    (tmp_path / "evolution.yaml").write_text(yaml.safe_dump(TREE))
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"seed": 1, "evaluate": {"cpu": "many"}}))
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path / "evolution.yaml", tmp_path / "profile.yaml")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["evaluate.cpu", "seed"]
    assert [line.split(": ")[0] for line in lines] == [f"{tmp_path / 'profile.yaml'}:{line}" for line in (2, 3)]
    (tmp_path / "profile.yaml").write_text("place: {parallelism: 3}")
    with pytest.raises(InvalidInputError, match="take the line 'place:' away"):
        load(tmp_path / "evolution.yaml", tmp_path / "profile.yaml")
    (tmp_path / "profile.yaml").write_text("")
    plain, under = load(tmp_path / "evolution.yaml"), load(tmp_path / "evolution.yaml", tmp_path / "profile.yaml")
    assert under.model_dump() == plain.model_dump()
    assert (plain.place.name, under.place.name) == ("local", "profile")


def test_flags_beat_the_place_and_are_checked() -> None:
    config = placed(parse(TREE, "here"), runner="docker", namespace="team")
    assert (config.place.runner, config.place.namespace, config.place.bucket) == ("docker", "team", "cycleqd")
    with pytest.raises(InvalidInputError, match=r"the command line: runner: .*'local', 'docker' or 'kubeflow'"):
        placed(config, runner="moon")


def test_a_problem_names_its_line_and_what_was_meant(tmp_path: Path) -> None:
    text = """name: here
models: {base: b, experts: {a: {path: a, task: one}, b: {path: b, task: two, rnak: 8}}}
tasks:
  one: {class: code, data: x}
  two:
    class: code
    split: {share: half}
method:
  generatons: 7
  mutation:
    kind: svd
    wmax: 0.5
  focus: cylic
place: {runner: lokal}
"""
    path = tmp_path / "evolution.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as refused:
        load(path)
    assert str(refused.value).replace(str(path), "F").splitlines() == [
        "F:2: models.experts.b.rnak: there is no such setting (did you mean 'rank'?)",
        "F:5: tasks.two.data: is missing; add it",
        "F:7: tasks.two.split.share: must be a number, not 'half'",
        "F:13: method.focus: must be 'cyclic', 'all' or 'fixed' or a section of 'key: value', not 'cylic'"
        " (did you mean 'cyclic'?)",
        "F:12: method.mutation.wmax: there is no such setting (did you mean 'w_max'?)",
        "F:9: method.generatons: there is no such setting (did you mean 'generations'?)",
        "F:14: place.runner: must be 'local', 'docker' or 'kubeflow', not 'lokal' (did you mean 'local'?)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: größe\n".encode("latin-1"), "save the file as UTF-8"),
        (b"a: " + b"[" * 5000, "nested more than 100 levels deep"),
        (b"name: [", "not valid YAML"),
        (b"", "must be a section"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "evolution.yaml"
    path.write_bytes(text)
    with pytest.raises(InvalidInputError, match=said) as refused:
        load(path)
    assert len(str(refused.value).splitlines()) == 1 and str(path) in str(refused.value)


def test_a_device_that_never_ends_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"/dev/zero: .*more than"):
        load(Path("/dev/zero"))
