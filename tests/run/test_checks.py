"""What keeps a configuration from running, or is unlikely to be meant, is said before anything is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.errors import InvalidInputError
from cycleqd.run.checks import Findings, check_cache, check_method, check_models, check_server, check_tasks
from cycleqd.run.cluster_checks import check_cluster, cluster_warnings, quantity
from cycleqd.run.serving import flags
from cycleqd.search.config import Config
from cycleqd.search.method import Method
from tests.pipelines.configs import LLAMA3, two_tasks

DIGESTS = {name: f"registry.example:5000/{name}@sha256:0f" for name in ("control", "weights", "evaluate")}


def cluster(**place: Any) -> Config:
    return two_tasks(runner="kubeflow", **{"images": DIGESTS, **place})


def with_method(method: dict[str, Any]) -> Config:
    return two_tasks().model_copy(update={"method": Method.model_validate(method)})


def test_a_good_place_has_no_problems_and_no_warnings() -> None:
    gpu = {"gpu": 1, "shared_memory": "16Gi", "memory": "48G"}
    place = {"evaluate": gpu, "service_account": "runs", "endpoint": "https://kfp.example", "pull_secrets": ["a.b"]}
    assert [*check_cluster(cluster(**place)), *cluster_warnings(cluster(**place))] == []


def test_data_that_never_end_are_refused_before_they_are_read() -> None:
    plugin = Path(__file__).parents[1] / "data" / "letters.py"
    task = two_tasks().tasks["one"].model_copy(update={"class_": f"{plugin}:Letters", "data": "/dev/zero"})
    findings = Findings()
    check_tasks(two_tasks().model_copy(update={"tasks": {"one": task}}), findings, lambda part: None)
    assert findings.problems == [
        "task 'one': /dev/zero is neither a file nor a folder; correct its data in the configuration"
    ]


def test_a_server_needs_an_address() -> None:
    config = two_tasks(server={"url": "http://cycleqd-server:8000/"})
    assert config.place.server.url == "http://cycleqd-server:8000"
    evaluation = config.evaluation.model_copy(update={"engine": "server"})
    assert [*check_server(config)] == [*check_server(config.model_copy(update={"evaluation": evaluation}))] == []
    (address,) = check_server(two_tasks().model_copy(update={"evaluation": evaluation}))
    assert address == "evaluation.engine is server: say where it is (place.server.url)"


@pytest.mark.parametrize(
    "url", ["cycleqd-server:8000", "http://key@host", "ftp://host", "http://host?key=x", "http://"]
)
def test_an_address_of_a_server_is_one_without_a_key(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"place\.server\.url: .* is not the address of a server"):
        two_tasks(server={"url": url})


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            {"images": {**DIGESTS, "weights": "r:5000/weights"}},
            "place.images.weights is 'r:5000/weights', without a tag",
        ),
        (
            {"images": {**DIGESTS, "control": "control:latest"}},
            "place.images.control is 'control:latest', tagged latest",
        ),
        ({"services": "embedded"}, "place.services is embedded"),
        ({"endpoint": "kfp.example:8888"}, "place.endpoint is 'kfp.example:8888'; begin it with http"),
        ({"endpoint": "https://me:hidden@kfp.example"}, "place.endpoint holds credentials"),
        ({"tls_ca": "/nowhere/ca.pem"}, "place.tls_ca: there is no file /nowhere/ca.pem"),
        ({"config_map": "My Map"}, "place.config_map: 'My Map' cannot be the name"),
        ({"labels": {"cycleqd/image": "mine"}}, "place.labels: 'cycleqd/image' is a label by which pods are found"),
        ({"labels": {"pipeline/runid": "mine"}}, "place.labels: 'pipeline/runid' is a label by which pods are found"),
        ({"pull_secrets": ["good", "Bad"]}, "place.pull_secrets: 'Bad'"),
        ({"control": {"gpu": 1}}, "place.control.gpu is 1: no control stage uses a GPU"),
        ({"device": "cuda", "weights": {"gpu": 1}}, "place.device is cuda, but place.evaluate.gpu is 0"),
        ({"device": "cpu", "weights": {"gpu": 1}}, "place.weights.gpu is 1, but place.device is cpu"),
        ({"evaluate": {"memory": "16G", "shared_memory": "16Gi"}}, "shared_memory is 16Gi of a memory of 16G"),
    ],
)
def test_each_problem_is_one_sentence(place: dict[str, Any], said: str) -> None:
    (problem,) = check_cluster(cluster(**place))
    assert said in problem and "\n" not in problem


def test_what_is_unlikely_to_be_meant_is_a_warning() -> None:
    (tags,) = cluster_warnings(two_tasks(runner="kubeflow"))
    assert "control, weights, evaluate are named by tag" in tags
    (memory,) = cluster_warnings(cluster(evaluate={"gpu": 2}))
    assert "shared_memory is not set" in memory


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"grid": {"bins": 40}, "generations": 39}, "the archive of 'one' has 40 cells, but only 39 children"),
        (
            {"mutation": {"mode": "rescale", "w_max": 1}},
            "method.mutation.w_max is 1: rescaling by U[0, w_max] can then only shrink",
        ),
        ({"mutation": {"mode": "additive", "w_max": 1.5}}, "method.mutation.w_max is 1.5: additive mutation adds"),
        ({"stop": {"patience": 1}}, "method.stop.patience is 1: less than one turn of all archives"),
    ],
)
def test_a_method_that_is_unlikely_to_be_meant_is_a_warning(method: dict[str, Any], said: str) -> None:
    warnings = list(check_method(with_method(method)))
    assert warnings and said in warnings[0] and "\n" not in warnings[0]
    assert {sentence.split(":")[0] for sentence in warnings} == {warnings[0].split(":")[0]}


@pytest.mark.parametrize(
    "method",
    [
        {"grid": {"bins": 40}, "generations": 40},
        {"mutation": {"mode": "rescale", "w_max": 1.1}},
        {"mutation": {"mode": "rescale"}},
        {"mutation": {"mode": "additive", "w_max": 1}},
        {"mutation": {"kind": "gaussian", "sigma": 1}},
        {"stop": {"patience": 2}},
        {"stop": {"patience": 1}, "focus": "all"},
        {"stop": {"patience": 1}, "algorithm": "nsga2"},
    ],
)
def test_a_method_that_makes_sense_has_no_warnings(method: dict[str, Any]) -> None:
    assert list(check_method(with_method(method))) == []


@pytest.mark.parametrize(("settings", "warned"), [({}, True), ({"exclude": [17]}, False), ({"root": "host"}, False)])
def test_os_samples_that_pods_cannot_run_are_told_before_seeding(settings: dict[str, Any], warned: bool) -> None:
    config = cluster()
    data = {"class": "os", "data": "s3://data/os", "settings": settings}
    tasks = {**config.tasks, "one": type(config.tasks["one"]).model_validate(data)}
    found = list(cluster_warnings(config.model_copy(update={"tasks": tasks})))
    assert [sentence.startswith("task 'one': some OS samples") for sentence in found] == [True] * warned


def test_quantities_are_compared_in_bytes() -> None:
    assert [quantity(text) for text in ("1500", "16G", "16Gi", "0.5Ti")] == [1500, 16e9, 2**34, 2**39]


def test_validate_tells_a_clusters_problems_with_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"control": {"gpu": 1}, "images": {"evaluate": "evaluate:latest"}}))
    arguments = ["validate", "--json", "-c", str(LLAMA3), "--profile", str(profile)]
    result = CliRunner().invoke(app, arguments, env={"MLFLOW_TRACKING_URI": "", "CYCLEQD_BUCKET": ""})
    problems = json.loads(result.stdout)["problems"]
    assert result.exit_code == 2
    assert sum("place.control.gpu" in problem for problem in problems) == 1
    assert sum("evaluate:latest" in problem for problem in problems) == 1


@pytest.mark.parametrize(("gpus", "engine", "refused"), [(3, "vllm", True), (2, "vllm", False), (3, "server", False)])
def test_gpus_that_cannot_divide_a_models_heads_are_a_problem(
    tiny_models: Path, gpus: int, engine: str, refused: bool
) -> None:
    config, findings = two_tasks(evaluate={"gpu": gpus}), Findings()
    base = str(tiny_models / "base")
    experts = {name: one.model_copy(update={"path": base}) for name, one in config.models.experts.items()}
    models = config.models.model_copy(update={"base": base, "experts": experts})
    evaluation = config.evaluation.model_copy(update={"engine": engine})
    check_models(config.model_copy(update={"models": models, "evaluation": evaluation}), None, findings)
    said = [problem for problem in findings.problems if "attention heads" in problem]
    assert bool(said) == refused and all("place.evaluate.gpu is 3" in problem for problem in said)


def test_a_server_is_given_settings_as_switches_and_values() -> None:
    given = {"max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False}
    assert flags(given) == ["--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching"]


def test_a_cache_too_small_for_a_dense_swap_is_a_problem() -> None:
    findings, config = Findings(), two_tasks(cache_size="10GB")
    check_cache(config, 0, findings)
    check_cache(config, 9 * 10**9, findings)
    assert findings.problems == []
    check_cache(config, 16 * 10**9, findings)
    (problem,) = findings.problems
    assert problem.startswith("place.cache_size is 10GB, and models.keep_dense makes a checkpoint of 16.0 GB there")
