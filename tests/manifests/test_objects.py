"""Every object of every overlay: the Kubernetes schemas, Pod Security, images, requests, probes, names."""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cycleqd.errors import UnavailableError
from pipelines.placement import AUTHORITIES, CACHE, CERTIFICATES, TRUSTING
from tests.manifests.conftest import KUBECTL, MANIFESTS, OVERLAYS, Objects, build

VERSIONS = ("1.30", "1.34", "1.37")  # the oldest with what is used, the one Kubeflow 2.17 was tried on, the newest
SECRET, SETTINGS, SERVER = "cycleqd-credentials", "cycleqd-settings", "cycleqd-server"


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def kinds(objects: Objects, *wanted: str) -> Objects:
    return [o for o in objects if o["kind"] in wanted]


def templates(objects: Objects) -> dict[str, dict[str, Any]]:
    """The pod templates, by the name of what makes the pods."""
    made = kinds(objects, "Deployment", "StatefulSet", "Job")
    return {o["metadata"]["name"]: o["spec"]["template"] for o in made}


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_the_schemas(objects: Objects, version: str) -> None:
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("file", ["namespace", "secret"])
def test_what_is_applied_by_hand_fits_the_schemas(file: str) -> None:
    text = build(MANIFESTS / file) if file == "namespace" else (MANIFESTS / "secret.yaml").read_text()
    kubernetes_validate.validate(yaml.safe_load(text), VERSIONS[-1], strict=True)


def test_an_overlay_brings_what_it_says(built: dict[str, Objects]) -> None:
    services = {"cycleqd-s3", "cycleqd-mlflow"}
    assert services | {"cycleqd-driver"} == set(templates(built["test"])) == set(templates(built["gpu"]))
    assert services | {"cycleqd-driver", SERVER} == set(templates(built["server"]))
    assert set(templates(built["bring-your-own"])) == {"cycleqd-driver"}
    assert not kinds(built["bring-your-own"], "Service", "PersistentVolumeClaim")


def test_everything_is_in_one_namespace_that_the_overlay_does_not_own(objects: Objects, overlay: str) -> None:
    place = yaml.safe_load((MANIFESTS / "overlays" / overlay / "profile.yaml").read_text())
    assert {o["metadata"]["namespace"] for o in objects} == {place["namespace"]}
    assert not kinds(objects, "Namespace")  # deleting an overlay must not delete Kubeflow
    for binding in kinds(objects, "RoleBinding"):
        assert {subject["namespace"] for subject in binding["subjects"]} == {place["namespace"]}
    assert all(
        o["metadata"]["labels"]["app.kubernetes.io/part-of"] == "cycleqd" for o in objects if o["kind"] != "ConfigMap"
    )


def test_one_setting_moves_everything_to_another_namespace(overlay: str, tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = {"namespace": "team-a", "resources": [f"../manifests/overlays/{overlay}"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    objects = list(yaml.safe_load_all(build(folder)))
    assert {o["metadata"]["namespace"] for o in objects} == {"team-a"}
    assert named(objects, "RoleBinding", "cycleqd-driver")["subjects"][0]["namespace"] == "team-a"


def test_pods_pass_pod_security_restricted(objects: Objects) -> None:
    for name, template in templates(objects).items():
        spec = template["spec"]
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec), name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "emptyDir", "projected", "persistentVolumeClaim"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert not {"privileged", "runAsUser", "procMount", "seccompProfile"} & set(context), name


def test_only_the_driver_has_a_token_of_the_kubernetes_api(objects: Objects) -> None:
    for name, template in templates(objects).items():
        assert template["spec"].get("automountServiceAccountToken", True) == (name == "cycleqd-driver")


def test_images_are_pinned_and_resources_are_asked_for(objects: Objects) -> None:
    for name, template in templates(objects).items():
        for container in template["spec"]["containers"]:
            assert re.fullmatch(r"[^:@]+(:v?\d[\w.-]+|@sha256:[0-9a-f]{64})", container["image"]), container["image"]
            assert "latest" not in container["image"]
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


def test_servers_are_probed_on_their_own_ports(objects: Objects) -> None:
    for workload in kinds(objects, "Deployment", "StatefulSet"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


def test_services_lead_to_pods_and_addresses_to_services(built: dict[str, Objects]) -> None:
    for name in ("test", "gpu", "server"):
        settings = named(built[name], "ConfigMap", SETTINGS)["data"]
        profile = yaml.safe_load(named(built[name], "ConfigMap", "cycleqd-evolution")["data"]["profile.yaml"])
        addresses = {*settings.values(), profile.get("server", {}).get("url")}
        for service in kinds(built[name], "Service"):
            template = templates(built[name])[service["metadata"]["name"]]
            assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
            (port,) = service["spec"]["ports"]
            assert port["targetPort"] in {p["name"] for p in template["spec"]["containers"][0]["ports"]}
            assert f"http://{service['metadata']['name']}:{port['port']}" in addresses
        for workload in kinds(built[name], "Deployment", "StatefulSet", "PodDisruptionBudget"):
            selector = workload["spec"]["selector"]
            assert "matchExpressions" in selector or selector["matchLabels"]["app.kubernetes.io/name"] in templates(
                built[name]
            )


def test_names_that_pods_refer_to_exist(objects: Objects) -> None:
    there = {(o["kind"], o["metadata"]["name"]) for o in objects} | {("Secret", SECRET), ("Secret", SERVER)}
    for template in templates(objects).values():
        text = json.dumps(template)
        for name in re.findall(r'"(?:configMapRef|configMapKeyRef|configMap)": \{[^}]*"name": "([^"]+)"', text):
            assert ("ConfigMap", name) in there
        for name in re.findall(r'"(?:secretRef|secretKeyRef)": \{[^}]*"name": "([^"]+)"', text):
            assert ("Secret", name) in there
        for name in re.findall(r'"claimName": "([^"]+)"', text):
            assert ("PersistentVolumeClaim", name) in there
        account = template["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there


def test_no_secret_is_in_the_repository(built: dict[str, Objects]) -> None:
    assert all(not kinds(objects, "Secret") for objects in built.values())
    template = yaml.safe_load((MANIFESTS / "secret.yaml").read_text())
    for value in template["data"].values():
        with pytest.raises(binascii.Error):  # the API server refuses it as it stands
            base64.b64decode(value, validate=True)
    for file in MANIFESTS.rglob("*"):
        if file.is_file():
            assert not re.search(
                r"(?i)(password|secret_access_key|token)\W*[:=]\W*[a-z0-9/+]{12,}", file.read_text()
            ), file


def test_the_driver_may_do_what_it_does_and_no_more(objects: Objects) -> None:
    rules = named(objects, "Role", "cycleqd-driver")["rules"]
    granted = {
        (group, resource): (set(rule["verbs"]), tuple(rule.get("resourceNames", ())))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted[("", "secrets")] == ({"get"}, (SECRET,))
    assert granted[("", "configmaps")] == ({"get"}, (SETTINGS, "cycleqd-certificates"))
    assert granted[("", "persistentvolumeclaims")] == ({"get"}, ("cycleqd-cache",))
    assert granted[("pipelines.kubeflow.org", "runs")][0] == {"get", "list", "create", "retry", "terminate", "archive"}
    assert granted[("argoproj.io", "workflows")][0] == {"list"}
    assert not {"*"} & {text for group, resource in granted for text in (group, resource)}
    assert not {"*", "delete", "update", "patch"} & {verb for verbs, _ in granted.values() for verb in verbs}
    assert not kinds(objects, "ClusterRole", "ClusterRoleBinding")


def test_only_drivers_that_were_interrupted_or_met_a_silent_server_start_again(objects: Objects) -> None:
    job = named(objects, "Job", "cycleqd-driver")["spec"]
    ignored, failed = job["podFailurePolicy"]["rules"]
    assert ignored["action"] == "Ignore" and ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert failed["action"] == "FailJob" and failed["onExitCodes"]["values"] == [1, 2, 3, 4, 6]
    assert UnavailableError.exit_code == 5 and job["backoffLimit"] == 6
    assert failed["onExitCodes"]["containerName"] in {c["name"] for c in job["template"]["spec"]["containers"]}
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["suspend"] is True


def with_component(name: str, folder: Path) -> Objects:
    """The base with a component, valid."""
    (folder / "manifests").symlink_to(MANIFESTS)
    lines = {
        "namespace": "kubeflow",
        "resources": ["../manifests/base"],
        "components": [f"../manifests/components/{name}"],
    }
    (folder / "overlay").mkdir()
    (folder / "overlay" / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    objects = list(yaml.safe_load_all(build(folder / "overlay")))
    for one in objects:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    return objects


def test_mlflow_on_postgresql_keeps_nothing_on_a_volume(tmp_path: Path) -> None:
    objects = with_component("postgresql", tmp_path)
    assert not kinds(objects, "PersistentVolumeClaim")
    spec = templates(objects)["cycleqd-mlflow"]["spec"]
    (uri,) = [e for e in spec["containers"][0]["env"] if e["name"] == "MLFLOW_BACKEND_STORE_URI"]
    assert uri["valueFrom"]["secretKeyRef"] == {"name": "cycleqd-mlflow-database", "key": "uri"} and "value" not in uri
    assert [v["name"] for v in spec["volumes"]] == ["tmp"] == [m["name"] for m in spec["containers"][0]["volumeMounts"]]


def test_the_driver_trusts_the_authorities_that_tasks_trust(tmp_path: Path) -> None:
    spec = templates(with_component("certificates", tmp_path))["cycleqd-driver"]["spec"]
    (container,) = spec["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert {variables[name] for name in TRUSTING} == {f"{CERTIFICATES}/{AUTHORITIES}"}
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == CERTIFICATES]
    (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
    assert volume["configMap"] == {"name": "cycleqd-certificates"}


def test_the_cache_belongs_to_the_user_of_tasks(tmp_path: Path) -> None:
    objects = with_component("cache", tmp_path)
    test_pods_pass_pod_security_restricted(objects)
    spec = templates(objects)["cycleqd-cache"]["spec"]
    (volume,) = spec["volumes"]
    named(objects, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == 1000
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] == CACHE


PATCHES = ("workflow-spec-patch", "workflow-spec-patch-apparmor")


def patched(file: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A pod's spec after a workflow patch: a strategic merge, as Argo does."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    (folder / "pod.json").write_text(json.dumps(pod))
    whole = json.loads((MANIFESTS / "kubeflow" / f"{file}.json").read_text())
    assert set(whole) == {"podSpecPatch"}
    patch = json.dumps({"spec": json.loads(whole["podSpecPatch"])})
    command = [KUBECTL, "patch", "--local", "-f", folder / "pod.json", "--type=strategic", "-p", patch, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    after: dict[str, Any] = json.loads(done.stdout)["spec"]
    kubernetes_validate.validate({**pod, "spec": after}, VERSIONS[-1], strict=True)
    return after


@pytest.mark.parametrize("file", PATCHES)
def test_a_workflow_patch_frees_what_runs_tasks_and_nothing_else(file: str, tmp_path: Path) -> None:
    """Of a pod as Kubeflow Pipelines 2.17 makes it."""
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    mine = {**profile, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    containers = [{"name": n, "image": f"image/{n}:1", "securityContext": mine} for n in ("wait", "main")]
    after = patched(file, {"securityContext": {**profile, "fsGroup": 7}, "containers": containers}, tmp_path)
    by_name = {c["name"]: c for c in after["containers"]}
    freed = {k: v for k, v in mine.items() if k != "seccompProfile"}
    if file.endswith("apparmor"):
        freed["appArmorProfile"] = {"type": "Unconfined"}
    assert after["securityContext"] == {"fsGroup": 7}
    assert by_name["wait"]["securityContext"] == mine
    assert by_name["main"]["securityContext"] == freed and by_name["main"]["image"] == "image/main:1"


@pytest.mark.parametrize("file", PATCHES)
def test_a_workflow_patch_takes_nothing_from_a_pod_without_profiles(file: str, tmp_path: Path) -> None:
    containers = [{"name": n, "image": f"image/{n}:1"} for n in ("wait", "main")]
    after = patched(file, {"containers": containers}, tmp_path)
    assert {c["name"]: c["image"] for c in after["containers"]} == {"wait": "image/wait:1", "main": "image/main:1"}
    assert "seccompProfile" not in json.dumps(after)


def test_every_overlay_is_tested() -> None:
    assert {folder.name for folder in (MANIFESTS / "overlays").iterdir()} == set(OVERLAYS)
