"""Who may talk to whom, as the network policies of each overlay say it; and which pods hold a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from pipelines.placement import LABEL
from tests.manifests.conftest import Objects
from tests.manifests.test_objects import kinds, named, templates


@dataclass(frozen=True)
class Peer:
    """A pod, or an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "kubeflow"
    address: str = ""


TASKS = [
    Peer({LABEL: image, "pipelines.kubeflow.org/v2_component": "true"}) for image in ("control", "weights", "evaluate")
]
STRANGER = Peer({"app": "somebody"})
ELSEWHERE = Peer({"app": "somebody"}, "default")
INTERNET = Peer(address="198.51.100.7")
METADATA = Peer(address="169.254.169.254")  # a cloud's, which hands out the node's credentials
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
KUBERNETES = [Peer(address="10.96.0.1"), Peer(address="172.18.0.2")]
KUBEFLOW = {
    8888: Peer({"app": "ml-pipeline"}),
    8887: Peer({"app": "ml-pipeline"}),
    8080: Peer({"component": "metadata-grpc-server"}),
    8333: Peer({"app": "seaweedfs"}),
}


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for rule in selector.get("matchExpressions", []):
        value = labels.get(rule["key"])
        held = {
            "Exists": value is not None,
            "In": value in rule.get("values", ()),
            "NotIn": value not in rule.get("values", ()),
        }
        if not held[rule["operator"]]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_peer(rule: dict[str, Any], peer: Peer, namespace: str) -> bool:
    if "ipBlock" in rule:
        return bool(peer.address) and ip_address(peer.address) in ip_network(rule["ipBlock"]["cidr"])
    if peer.address:
        return False
    if "namespaceSelector" in rule:
        there = selected(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        there = peer.namespace == namespace
    return there and selected(rule.get("podSelector", {}), peer.labels)


def allowed(objects: Objects, source: Peer, target: Peer, port: int) -> bool:
    """Whether a connection is allowed at both ends. A pod that no policy of a direction selects is free in it."""
    for direction, here, there, word in (("Egress", source, target, "to"), ("Ingress", target, source, "from")):
        policies = [
            policy["spec"]
            for policy in kinds(objects, "NetworkPolicy")
            if not here.address
            and policy["metadata"]["namespace"] == here.namespace
            and selected(policy["spec"]["podSelector"], here.labels)
            and direction in policy["spec"]["policyTypes"]
        ]
        rules = [rule for policy in policies for rule in policy.get(direction.lower()) or []]
        if policies and not any(
            port in [p["port"] for p in rule["ports"]]
            and any(is_peer(peer, there, here.namespace) for peer in rule[word])
            for rule in rules
        ):
            return False
    return True


def pod(objects: Objects, name: str) -> Peer:
    return Peer(templates(objects)[name]["metadata"]["labels"])


def test_tasks_and_the_driver_reach_what_they_need(objects: Objects) -> None:
    for here in [*TASKS, pod(objects, "cycleqd-driver")]:
        assert allowed(objects, here, DNS, 53)
        assert all(allowed(objects, here, api, port) for api in KUBERNETES for port in (443, 6443))
        assert all(allowed(objects, here, there, port) for port, there in KUBEFLOW.items())


def test_tasks_reach_nothing_else(objects: Objects) -> None:
    for here in TASKS:
        for there in (STRANGER, ELSEWHERE, INTERNET, METADATA, TASKS[0]):
            assert not any(allowed(objects, here, there, port) for port in (22, 80, 443, 5000, 6443, 8080, 8333))
        assert not allowed(objects, here, DNS, 443)


def test_nobody_connects_to_tasks_and_driver(objects: Objects) -> None:
    for there in [*TASKS, pod(objects, "cycleqd-driver")]:
        assert not any(allowed(objects, here, there, 8080) for here in (STRANGER, ELSEWHERE, *TASKS))


def test_other_pipelines_of_the_namespace_are_left_alone(objects: Objects) -> None:
    other = Peer({"pipelines.kubeflow.org/v2_component": "true"})
    assert allowed(objects, other, INTERNET, 443) and allowed(objects, STRANGER, other, 80)


@pytest.mark.parametrize("name", ["test", "gpu", "server"])
def test_s3_and_mlflow_are_reached_by_tasks_and_driver_only(built: dict[str, Objects], name: str) -> None:
    objects = built[name]
    driver, mlflow = pod(objects, "cycleqd-driver"), pod(objects, "cycleqd-mlflow")
    for service in ("cycleqd-s3", "cycleqd-mlflow"):
        there = pod(objects, service)
        (port,) = [p["port"] for p in named(objects, "Service", service)["spec"]["ports"]]
        assert all(allowed(objects, here, there, port) for here in [*TASKS, driver])
        assert not any(allowed(objects, here, there, port) for here in (STRANGER, ELSEWHERE))
        assert not allowed(objects, there, INTERNET, 443)
    assert allowed(objects, mlflow, pod(objects, "cycleqd-s3"), 8333) and allowed(objects, mlflow, DNS, 53)


def test_the_server_is_reached_by_pods_that_score_only_and_reaches_s3_only(built: dict[str, Objects]) -> None:
    objects = built["server"]
    server, s3 = pod(objects, "cycleqd-server"), pod(objects, "cycleqd-s3")
    evaluate = Peer({LABEL: "evaluate", "pipelines.kubeflow.org/v2_component": "true"})
    assert allowed(objects, evaluate, server, 8000) and not allowed(objects, evaluate, server, 22)
    for here in (STRANGER, ELSEWHERE, pod(objects, "cycleqd-driver"), *(t for t in TASKS if t != evaluate)):
        assert not allowed(objects, here, server, 8000)
    assert allowed(objects, server, s3, 8333) and allowed(objects, server, DNS, 53)
    for there in (INTERNET, METADATA, STRANGER, *KUBERNETES, pod(objects, "cycleqd-mlflow")):
        assert not any(allowed(objects, server, there, port) for port in (80, 443, 5000, 6443))


def test_services_of_the_cluster_are_reached_at_the_addresses_given(built: dict[str, Objects]) -> None:
    for here in TASKS:
        for address in ("192.0.2.20", "192.0.2.30"):
            assert allowed(built["bring-your-own"], here, Peer(address=address), 443)


def test_a_drain_waits_for_tasks_and_servers_and_not_for_the_driver(built: dict[str, Objects]) -> None:
    objects = built["test"]

    def held(labels: dict[str, str]) -> bool:
        return any(selected(one["spec"]["selector"], labels) for one in kinds(objects, "PodDisruptionBudget"))

    assert all(held(task.labels) for task in TASKS) and not held(STRANGER.labels)
    assert {name for name in templates(objects) if held(pod(objects, name).labels)} == {"cycleqd-s3", "cycleqd-mlflow"}
