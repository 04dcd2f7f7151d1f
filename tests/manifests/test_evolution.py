"""The evolution that each overlay ships: it loads, compiles, and names only what the overlay or its page makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cycleqd.cli import app
from cycleqd.run.cluster_checks import check_cluster
from cycleqd.search.config import Config, load, placed
from pipelines.definitions import Kind, write
from pipelines.placement import LABEL
from tests.evaluation.benchmarks.test_os_data import NEED_PROCESSES, NEED_USERS
from tests.manifests.conftest import MANIFESTS, OVERLAYS, Objects
from tests.manifests.test_objects import SECRET, SERVER, SETTINGS, named, templates

KINDS: tuple[Kind, ...] = ("seeding", "generation", "finalising")
SECRET_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def shipped(objects: Objects, folder: Path) -> Config:
    """The configuration as the driver reads it, from the ConfigMap's files; here the base's size is not to be seen."""
    for name, text in named(objects, "ConfigMap", "cycleqd-evolution")["data"].items():
        (folder / name).write_text(text)
    return placed(load(folder / "cycleqd.yaml", folder / "profile.yaml"), fused=False)


def compiled(config: Config, kind: Kind, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers and Kubernetes settings by executor."""
    write(config, kind, config.place.generations_per_run, path)
    pipeline, platform = yaml.safe_load_all(path.read_text())
    containers = {name: e["container"] for name, e in pipeline["deploymentSpec"]["executors"].items()}
    return containers, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_compiled_tasks_name_is_there(objects: Objects, kind: Kind, tmp_path: Path) -> None:
    config = shipped(objects, tmp_path)
    containers, executors = compiled(config, kind, tmp_path / "pipeline.yaml")
    settings = named(objects, "ConfigMap", SETTINGS)["data"]
    assert set(containers) == set(executors)
    for executor in executors.values():
        for source in executor["secretAsEnv"]:
            keys = {key["secretKey"] for key in source["keyToEnv"]}
            if source["secretName"] == SERVER:
                assert config.evaluation.engine == "server" and keys == {"API_KEY"}
            else:
                assert source["secretName"] == SECRET and (source.get("optional") or keys <= SECRET_KEYS)
        for source in executor["configMapAsEnv"]:
            assert source["configMapName"] == SETTINGS
            assert source.get("optional") or {key["configMapKey"] for key in source["keyToEnv"]} <= set(settings)
        assert set(executor["podMetadata"]["labels"]) == {LABEL}
        assert not executor.get("imagePullSecret")


def test_the_secrets_keys_are_those_of_its_template() -> None:
    assert set(yaml.safe_load((MANIFESTS / "secret.yaml").read_text())["data"]) == SECRET_KEYS


def test_driver_and_tasks_run_the_same_image(objects: Objects, tmp_path: Path) -> None:
    config = shipped(objects, tmp_path)
    (container,) = named(objects, "Job", "cycleqd-driver")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == config.place.images.control
    images = {c["image"] for kind in KINDS for c in compiled(config, kind, tmp_path / "pipeline.yaml")[0].values()}
    assert images == {config.place.images.control, config.place.images.weights, config.place.images.evaluate}


def test_the_place_is_the_overlays(objects: Objects, tmp_path: Path) -> None:
    place = shipped(objects, tmp_path).place
    job = named(objects, "Job", "cycleqd-driver")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert place.runner == "kubeflow" and place.services == "external"
    assert place.namespace == job["metadata"]["namespace"]
    assert (place.secret, place.config_map) == (SECRET, SETTINGS)
    assert any(place.folder.startswith(f"{path}/") for path in writable)


def test_nothing_speaks_against_running_it_on_a_cluster(objects: Objects, tmp_path: Path) -> None:
    assert not [*check_cluster(shipped(objects, tmp_path))]


@pytest.mark.parametrize("workload", ["cycleqd-driver", SERVER])
def test_driver_and_server_run_real_commands_on_the_mounted_files(objects: Objects, workload: str) -> None:
    if workload not in templates(objects):
        pytest.skip("not in this overlay")
    spec = templates(objects)[workload]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["cycleqd"]
    name, *arguments = container["args"]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, list(arguments)).params
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    (volume,) = [v for v in spec["volumes"] if v["name"] == mounts["/config"]]
    files = named(objects, "ConfigMap", volume["configMap"]["name"])["data"]
    for option in ("config", "profile"):
        assert given[option].parent == Path("/config") and given[option].name in files


def test_gpu_tasks_are_placed_on_gpus_and_no_others_are(built: dict[str, Objects], tmp_path: Path) -> None:
    containers, executors = compiled(shipped(built["gpu"], tmp_path), "generation", tmp_path / "pipeline.yaml")
    with_gpu = {name for name, c in containers.items() if "accelerator" in c["resources"]}
    assert with_gpu == {name for name in containers if "evaluate" in name} != set()
    for name, executor in executors.items():
        shared = [m for m in executor["emptyDirMounts"] if m["mountPath"] == "/dev/shm"]
        assert ("nodeSelector" in executor) == ("tolerations" in executor) == bool(shared) == (name in with_gpu)
    assert {c["resources"]["accelerator"]["type"] for n, c in containers.items() if n in with_gpu} == {"nvidia.com/gpu"}


def test_where_a_server_generates_only_it_has_a_gpu_and_pods_that_score_have_its_key(
    built: dict[str, Objects], tmp_path: Path
) -> None:
    objects = built["server"]
    containers, executors = compiled(shipped(objects, tmp_path), "generation", tmp_path / "pipeline.yaml")
    assert not any("accelerator" in container["resources"] for container in containers.values())
    with_key = {n for n, e in executors.items() if any(s["secretName"] == SERVER for s in e["secretAsEnv"])}
    assert with_key == {name for name in containers if "evaluate" in name} != set()
    (server,) = named(objects, "Deployment", SERVER)["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    images = {container["image"] for name, container in containers.items() if name in with_key}
    assert images == {server["image"]}


def test_os_tasks_that_no_pod_can_run_are_left_out() -> None:
    task = load(MANIFESTS / "overlays" / "gpu" / "cycleqd.yaml").tasks["os"]
    assert {str(one) for one in task.settings["exclude"]} == NEED_USERS | NEED_PROCESSES


def test_the_test_overlay_is_the_tiny_example() -> None:
    """So each continues what the other has begun."""
    here = load(MANIFESTS / "overlays" / "test" / "cycleqd.yaml")
    assert here.frozen() == load(MANIFESTS.parent / "examples" / "tiny" / "config.yaml").frozen()


def test_the_gpu_overlay_is_the_published_setting_as_far_as_pods_can_run_it() -> None:
    here = load(MANIFESTS / "overlays" / "gpu" / "cycleqd.yaml").frozen()
    del here["tasks"]["os"]["settings"]["exclude"]
    assert here == load(MANIFESTS.parent / "examples" / "llama3" / "cycleqd.yaml").frozen()


def test_configurations_name_no_file_of_a_machine() -> None:
    """The driver's pod has none."""
    for overlay in OVERLAYS:
        config = load(MANIFESTS / "overlays" / overlay / "cycleqd.yaml")
        paths = [config.models.base, *(e.path for e in config.models.experts.values())]
        paths += [task.data for task in config.tasks.values()]
        assert all(path.startswith("s3://") for path in paths)
        assert all(
            task.class_ in ("code", "db", "os") or task.class_.startswith("s3://") for task in config.tasks.values()
        )
