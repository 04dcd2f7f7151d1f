"""The compiled pipelines are golden files. CYCLEQD_REGENERATE=1 writes them anew: read the difference first."""

from __future__ import annotations

import json
import os
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.definitions import Kind, write
from tests.pipelines.configs import ROOT, golden_configs, two_tasks

GOLDEN = ROOT / "tests" / "golden"
KINDS: tuple[Kind, ...] = ("seeding", "generation", "finalising")
LOOPED = ("llama3", "child", "large")
"""The golden files of generations that have a task a child."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", golden_configs())
def test_the_compiled_pipeline_is_the_golden_one(name: str, kind: Kind, tmp_path: Path) -> None:
    config = golden_configs()[name]
    made, golden = tmp_path / "pipeline.yaml", GOLDEN / f"{name}-{kind}.yaml"
    write(config, kind, config.place.generations_per_run, made)
    if os.environ.get("CYCLEQD_REGENERATE"):
        golden.write_text(made.read_text())
    assert made.read_text() == golden.read_text()


def compiled(name: str, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """A golden file's pipeline and platform documents (a pipeline without a cluster's settings has no second one)."""
    documents = list(yaml.safe_load_all((GOLDEN / f"{name}-{kind}.yaml").read_text()))
    return documents[0], documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def every_task(pipeline: dict[str, Any]) -> dict[str, Any]:
    """All tasks that run a container, by "dag/task"."""
    dags = {"root": pipeline["root"], **pipeline["components"]}
    return {
        f"{dag}/{name}": task
        for dag, component in dags.items()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in pipeline["components"][task["componentRef"]["name"]]
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", golden_configs())
def test_no_task_is_cached_or_repeated_and_every_pod_ends(name: str, kind: Kind) -> None:
    """A retry of Argo's would only delay the end of what failed: stock Kubeflow repeats no container that exits."""
    place = golden_configs()[name].place
    pipeline, executors = compiled(name, kind)
    tasks = every_task(pipeline)
    assert tasks
    for task in tasks.values():
        assert not task["cachingOptions"].get("enableCache")
        assert "retryPolicy" not in task
        label = pipeline["components"][task["componentRef"]["name"]]["executorLabel"]
        assert executors[label]["activeDeadlineSeconds"] == str(place.timeout)


@pytest.mark.parametrize("name", golden_configs())
def test_a_loop_uses_only_its_item_and_pipeline_parameters(name: str) -> None:
    """kfp.local silently puts the item in the place of another task's output."""
    pipeline, _ = compiled(name, "generation")
    loops = [c for c in pipeline["components"] if c.startswith("comp-for-loop")]
    assert len(loops) == (name in LOOPED)
    for task in (task for loop in loops for task in pipeline["components"][loop]["dag"]["tasks"].values()):
        for source in task["inputs"]["parameters"].values():
            assert "taskOutputParameter" not in source
            given = source.get("componentInputParameter", "loop-item")
            assert given.endswith(("loop-item", "--evolution", "--profile"))


@pytest.mark.parametrize("name", ["generation", "span"])
def test_a_generation_of_small_children_is_a_task_a_step(name: str) -> None:
    """No loop, and no pod a child: cores are made in milliseconds, small checkpoints in seconds."""
    pipeline, _ = compiled(name, "generation")
    tasks = pipeline["root"]["dag"]["tasks"]
    assert list(tasks) == ["evaluate-models", "merge", "mutate", "select-parents", "update-archives"]
    assert tasks["merge"]["dependentTasks"] == ["select-parents"]
    assert tasks["mutate"]["dependentTasks"] == ["merge"]
    assert tasks["evaluate-models"]["dependentTasks"] == ["mutate"]
    assert set(tasks["update-archives"]["dependentTasks"]) == {"evaluate-models", "mutate"}


def test_the_basis_is_made_before_anything_is_scored() -> None:
    seeding, _ = compiled("span", "seeding")
    assert seeding["root"]["dag"]["tasks"]["basis"]["dependentTasks"] == ["seed"]


def test_several_generations_in_one_run_share_one_definition() -> None:
    """The definition has a size limit: it grows by a task a generation, not by a DAG."""
    pipeline, _ = compiled("llama3", "generation")
    tasks = pipeline["root"]["dag"]["tasks"]
    assert len(tasks) == 10
    assert {task["componentRef"]["name"] for task in tasks.values()} == {"comp-cycleqd-generation"}
    offsets = [tasks[n]["inputs"]["parameters"]["offset"]["runtimeValue"]["constant"] for n in sorted(tasks, key=order)]
    assert offsets == [float(offset) for offset in range(10)]
    assert [tasks[n].get("dependentTasks", []) for n in sorted(tasks, key=order)][1:] == [
        [name] for name in sorted(tasks, key=order)[:-1]
    ]


def order(name: str) -> int:
    """cycleqd-generation, cycleqd-generation-2, …"""
    tail = name.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 1


def test_pods_get_their_placement() -> None:
    pipeline, executors = compiled("llama3", "generation")
    containers = pipeline["deploymentSpec"]["executors"]
    evaluate, merge = executors["exec-evaluate-child"], executors["exec-merge-and-mutate"]
    assert containers["exec-evaluate-child"]["container"]["resources"]["accelerator"]["resourceCount"] == "1"
    assert "accelerator" not in containers["exec-merge-and-mutate"]["container"]["resources"]
    assert containers["exec-merge-and-mutate"]["container"]["resources"]["resourceMemoryLimit"] == "24G"
    mounts = {mount["mountPath"]: mount for mount in evaluate["emptyDirMounts"]}
    assert mounts["/dev/shm"]["medium"] == "Memory"
    assert evaluate["nodeSelector"]["labels"] == {"nvidia.com/gpu.present": "true"}
    assert evaluate["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nodeSelector" not in merge
    assert named(merge["secretAsEnv"], optional=False) == set(), "S3 may know pods by their service account"
    assert named(merge["secretAsEnv"], optional=True) == {
        ("cycleqd-credentials", "AWS_ACCESS_KEY_ID"),
        ("cycleqd-credentials", "AWS_SECRET_ACCESS_KEY"),
        ("cycleqd-credentials", "MLFLOW_TRACKING_TOKEN"),
        ("cycleqd-credentials", "MLFLOW_TRACKING_USERNAME"),
        ("cycleqd-credentials", "MLFLOW_TRACKING_PASSWORD"),
    }
    assert named(merge["configMapAsEnv"], optional=False) == {("cycleqd-settings", "MLFLOW_TRACKING_URI")}
    assert named(merge["configMapAsEnv"], optional=True) == {
        ("cycleqd-settings", "AWS_ENDPOINT_URL"),
        ("cycleqd-settings", "AWS_REGION"),
    }


GPU_CLUSTER: dict[str, Any] = {
    "runner": "kubeflow",
    "images": {
        name: f"registry.example/cycleqd/{name}@sha256:{name[0] * 8}" for name in ("control", "weights", "evaluate")
    },
    "pull_policy": "Always",
    "pull_secrets": ["first", "second"],
    "secret": "keys",
    "config_map": "addresses",
    "certificates": "authorities",
    "volumes": {"cache": "models"},
    "labels": {"kueue.x-k8s.io/queue-name": "research", "cost-center": "7"},
    "annotations": {"example.com/owner": "team a, building 7"},
    "bucket": "bucket",
    "timeout": 600,
    "retries": 3,
    "parallelism": 5,
    "control": {"cpu": "500m", "memory": "1Gi", "timeout": 300},
    "weights": {"node_selector": {"disk": "fast"}},
    "evaluate": {
        "cpu": "16",
        "memory": "64Gi",
        "gpu": 2,
        "gpu_type": "amd.com/gpu",
        "shared_memory": "12Gi",
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        "timeout": 9000,
    },
}
STAGES = {"seed": "control", "select": "control", "update": "control", "report": "control", "evaluate": "evaluate"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_of_a_gpu_cluster_gets_what_the_profile_says(kind: Kind, tmp_path: Path) -> None:
    """Seeding's and finalising's pods as well as a generation's: nothing is applied in one of them only."""
    write(two_tasks(fused=False, **GPU_CLUSTER), kind, 1, tmp_path / "pipeline.yaml")
    pipeline, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    containers = pipeline["deploymentSpec"]["executors"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(containers) and pods
    for label, pod in pods.items():
        image = STAGES.get(label.split("-")[1], "weights")
        wanted, container = GPU_CLUSTER[image], containers[label]["container"]
        assert container["image"] == GPU_CLUSTER["images"][image]
        assert {"name": "CYCLEQD_IMAGE", "value": container["image"]} in container["env"]
        assert {"name": "CYCLEQD_BUCKET", "value": "bucket"} in container["env"]
        resources, cpu = container["resources"], wanted.get("cpu", "2")
        assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == (cpu, wanted.get("memory", "8G"))
        assert resources["resourceCpuLimit"] == ("1" if cpu == "500m" else cpu)
        assert pod["activeDeadlineSeconds"] == str(wanted.get("timeout", 600))
        assert pod["podMetadata"] == {
            "labels": {"cycleqd/image": image, **GPU_CLUSTER["labels"]},
            "annotations": GPU_CLUSTER["annotations"],
        }
        assert pod["imagePullPolicy"] == "Always"
        assert [secret["secretName"] for secret in pod["imagePullSecret"]] == ["first", "second"]
        assert pod.get("nodeSelector", {}).get("labels", {}) == wanted.get("node_selector", {})
        assert {name for name, _ in named(pod["secretAsEnv"], optional=True)} == {"keys"}
        assert {name for name, _ in named(pod["configMapAsEnv"], optional=False)} == {"addresses"}
        assert {entry["name"]: entry["fieldPath"] for entry in pod["fieldPathAsEnv"]} == {
            "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
            "KFP_POD_NAME": "metadata.name",
        }
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        (authorities,) = pod["configMapAsVolume"]
        assert (authorities["configMapName"], authorities["mountPath"]) == ("authorities", "/certificates")
        assert {variables[n] for n in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")} == {
            "/certificates/ca.crt"
        }
        claims = [(claim["constant"], claim["mountPath"]) for claim in pod.get("pvcMount", [])]
        assert claims == ([("models", "/cache")] if image == "evaluate" else [])
        assert variables["CYCLEQD_CACHE"] == ("/cache/models" if image == "evaluate" else "/scratch/cache")
        assert variables.get("CYCLEQD_COMPILED") == ("/cache/vllm" if image == "evaluate" else None)
        mounts = {mount["mountPath"]: mount.get("sizeLimit") for mount in pod["emptyDirMounts"]}
        if image == "evaluate":
            accelerator = container["resources"]["accelerator"]
            assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "2")
            assert mounts == {"/scratch": None, "/dev/shm": "12Gi"}
            assert pod["tolerations"] == [
                {"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": "60"}
            ]
        else:
            assert "accelerator" not in container["resources"] and "tolerations" not in pod
            assert mounts == {"/scratch": None}
    text = (tmp_path / "pipeline.yaml").read_text()
    assert "retryPolicy" not in text and "parallelismLimit" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_pods_that_their_service_account_identifies_need_no_secret(kind: Kind, tmp_path: Path) -> None:
    write(two_tasks(runner="kubeflow", secret=None), kind, 1, tmp_path / "pipeline.yaml")
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert not {"secretAsEnv", "configMapAsVolume", "pvcMount"} & set(pod) and pod["configMapAsEnv"]


@pytest.mark.parametrize("runner", ["local", "docker", "kubeflow"])
def test_a_loop_is_limited_on_this_machine_and_never_on_a_cluster(runner: str, tmp_path: Path) -> None:
    """Argo counts what a retry sets to Running against a limit: where that many had failed, none would ever start."""
    write(two_tasks(runner=runner, parallelism=3, fused=True), "generation", 1, tmp_path / "pipeline.yaml")
    pipeline = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    (loop,) = [task for task in pipeline["root"]["dag"]["tasks"].values() if "parameterIterator" in task]
    limit = loop.get("iteratorPolicy", {}).get("parallelismLimit")
    assert limit == (None if runner == "kubeflow" else 3)


@pytest.mark.parametrize(("kind", "first"), [("seeding", "seed"), ("finalising", "aggregate")])
def test_scorings_wait_for_nothing_but_what_they_score(kind: Kind, first: str, tmp_path: Path) -> None:
    write(two_tasks(runner="kubeflow", group="task", fused=True), kind, 1, tmp_path / "pipeline.yaml")
    pipeline = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    tasks = pipeline["root"]["dag"]["tasks"]
    scorings = [name for name in tasks if name.startswith("evaluate-models")]
    waits = [tasks[name]["dependentTasks"] for name in scorings]
    assert len(scorings) > 3 and waits.count([first]) + waits.count(["choose-final"]) == len(waits)
    if kind == "seeding":
        assert set(tasks["update-archives"]["dependentTasks"]) == set(scorings)
    else:  # the choice waits for the search split's scores, all other scores for the choice
        assert waits.count([first]) == len(tasks["choose-final"]["dependentTasks"]) == 2


@pytest.mark.parametrize("name", golden_configs())
def test_nothing_of_a_pipeline_needs_what_backends_were_not_seen_to_do(name: str) -> None:
    """No exit handlers, conditions or nested loops; strings between tasks, no artifacts; one loop at most."""
    for kind in KINDS:
        pipeline, _ = compiled(name, kind)
        parts = pipeline["components"]
        assert not [part for part in parts if part.startswith(("comp-exit-handler", "comp-condition"))]
        loops = [part for part in parts if part.startswith("comp-for-loop")]
        assert len(loops) == (kind == "generation" and name in LOOPED)
        for part in parts.values():
            assert "artifacts" not in part.get("inputDefinitions", {})


def named(groups: list[dict[str, Any]], optional: bool) -> set[tuple[str, str]]:
    """(object, key) of the values that a pod takes from Secrets or ConfigMaps under the key's own name."""
    found = set()
    for group in groups:
        entries = group["keyToEnv"]
        if group.get("optional", False) == optional:
            name = group.get("secretName") or group["configMapName"]
            found |= {(name, entry.get("secretKey") or entry["configMapKey"]) for entry in entries}
        assert all((e.get("secretKey") or e["configMapKey"]) == e["envVar"] for e in entries)
    return found


@pytest.mark.parametrize("name", golden_configs())
def test_no_credential_is_in_a_definition(name: str) -> None:
    for kind in KINDS:
        pipeline, _ = compiled(name, kind)
        for executor in pipeline["deploymentSpec"]["executors"].values():
            names = {entry["name"] for entry in executor["container"].get("env", [])}
            assert names <= {"CYCLEQD_BUCKET", "CYCLEQD_CACHE", "CYCLEQD_IMAGE", "CYCLEQD_SCRATCH"}


def test_the_grouping_decides_how_many_evaluations_there_are() -> None:
    counts = {
        name: sum("evaluate" in task for task in every_task(compiled(name, "seeding")[0]))
        for name in ("task", "child", "large", "generation")
    }
    assert counts == {"task": 2, "child": 3, "large": 3, "generation": 1}


STEPS = {
    "task": ["select parents", "merge", "mutate", "evaluate one", "evaluate two", "update archives"],
    "child": ["select parents", "merge", "mutate", ("each child", ["evaluate one, two"]), "update archives"],
    "large": ["select parents", ("each child", ["merge and mutate", "evaluate one, two"]), "update archives"],
    "generation": ["select parents", "merge", "mutate", "evaluate one, two", "update archives"],
    "span": ["select parents", "merge", "mutate", "evaluate one, two", "update archives"],
    "span-kubeflow": ["select parents", "merge", "mutate", "evaluate one", "evaluate two", "update archives"],
}


@pytest.mark.parametrize("name", STEPS)
def test_the_graph_of_a_generation_reads_as_its_five_steps(name: str) -> None:
    pipeline, _ = compiled(name, "generation")
    assert names_of(pipeline, pipeline["root"]) == STEPS[name]


def names_of(pipeline: dict[str, Any], part: dict[str, Any]) -> list[Any]:
    """The names that people see, in the order in which tasks run; of a loop with those in it."""
    tasks = part["dag"]["tasks"]
    order = TopologicalSorter({name: sorted(tasks[name].get("dependentTasks", ())) for name in sorted(tasks)})
    found = []
    for name in order.static_order():
        inner, shown = pipeline["components"][tasks[name]["componentRef"]["name"]], tasks[name]["taskInfo"]["name"]
        found.append((shown, names_of(pipeline, inner)) if "dag" in inner else shown)
    return found


def test_generations_in_a_row_are_named_in_their_order() -> None:
    pipeline, _ = compiled("llama3", "generation")
    names = [name for name, _ in names_of(pipeline, pipeline["root"])]
    assert names == sorted(names) and (names[0], names[-1]) == ("generation 01 of 10", "generation 10 of 10")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", golden_configs())
def test_parameters_are_short_and_everything_is_described(name: str, kind: Kind) -> None:
    """A wall of JSON is what a person would see: it is in S3, and the parameters name it."""
    pipeline, _ = compiled(name, kind)
    own = {"seeding": {"config"}, "generation": {"generation", "offset"}, "finalising": {"models"}}[kind]
    given = pipeline["root"]["inputDefinitions"]["parameters"]
    several = golden_configs()[name].place.generations_per_run > 1
    assert set(given) == {"evolution", "profile"} | (own - {"offset"} if several else own)
    assert golden_configs()[name].name in pipeline["pipelineInfo"]["displayName"]
    assert pipeline["pipelineInfo"]["description"].endswith(".")
    assert all(parameter["description"] for parameter in given.values())
    for task in every_task(pipeline).values():
        inputs = pipeline["components"][task["componentRef"]["name"]]["inputDefinitions"]["parameters"]
        assert all(parameter["description"] for parameter in inputs.values())


SHOWN = {
    "seed": {},
    "basis": {},
    "select-parents": {},
    "merge": {"summary": "system.Markdown"},
    "mutate": {"summary": "system.Markdown"},
    "merge-and-mutate": {"summary": "system.Markdown"},
    "evaluate-child": {"scores": "system.Metrics"},
    "evaluate-models": {"scores": "system.Metrics"},
    "update-archives": {"archives": "system.HTML", "summary": "system.Markdown"},
    "aggregate": {"model": "system.Model"},
    "choose-final": {"model": "system.Model"},
    "report": {"page": "system.HTML"},
}


def test_each_stage_shows_what_it_did() -> None:
    found: dict[str, dict[str, str]] = {}
    for name in golden_configs():
        for kind in KINDS:
            pipeline, _ = compiled(name, kind)
            for task in every_task(pipeline).values():
                stage = task["componentRef"]["name"].removeprefix("comp-")
                outputs = pipeline["components"][f"comp-{stage}"].get("outputDefinitions", {}).get("artifacts", {})
                kinds = {name: output["artifactType"]["schemaTitle"] for name, output in outputs.items()}
                found[re.sub(r"-\d+$", "", stage)] = kinds
    assert found == SHOWN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", golden_configs())
def test_a_definition_is_ascii(name: str, kind: Kind) -> None:
    """Stock Kubeflow's database stores nothing else, and answers 500."""
    assert json.dumps([*yaml.safe_load_all((GOLDEN / f"{name}-{kind}.yaml").read_text())], ensure_ascii=False).isascii()
