"""Why tasks wait is said by drive, once, and by `cycleqd runs`; where Kubernetes may not be asked, nothing is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.run.kubeflow import runs as cluster
from cycleqd.run.kubeflow import waiting
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Steps
from cycleqd.storage.objects import Store
from tests.pipelines.configs import LLAMA3, two_tasks
from tests.run.kfp_server import Backend, leading_to, serving

NAME = "golden-generation-000003"
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."
NO_IMAGE = 'Back-off pulling image "registry.example/evaluate:1": ErrImagePull: not found'
NO_KEY = "couldn't find key MLFLOW_TRACKING_URI in ConfigMap kubeflow/cycleqd-settings"
NO_QUOTA = (
    'pods "x-system-container-impl-1" is forbidden: exceeded quota: cycleqd, requested: requests.cpu=2, used:'
    " requests.cpu=7, limited: requests.cpu=8"
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Backend, dict[str, Any]]]:
    """A run in flight for some polls, on a server of Kubeflow's API and Kubernetes'; the environment leads there."""
    for name in ("KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.0)
    state = Backend()
    with serving(state) as url:
        for name, value in leading_to(url, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield state, state.add_run(NAME, *["RUNNING"] * 6, "SUCCEEDED")


def pending(
    run: dict[str, Any], task: str = "evaluate-child", image: str = "evaluate", **status: Any
) -> dict[str, Any]:
    """A pod of a task that waits, as Kubernetes describes it."""
    arguments = ["--component_spec", f'{{"executorLabel": "exec-{task}"}}']
    return {
        "metadata": {"name": f"x-{task}", "labels": {"pipeline/runid": run["run_id"], "cycleqd/image": image}},
        "spec": {"containers": [{"name": "main", "args": arguments}]},
        "status": {"phase": "Pending", **status},
    }


def unscheduled(reason: str, message: str) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]}


def stuck(reason: str, message: str) -> dict[str, Any]:
    container = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    return {
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{**container, "state": {"waiting": {"reason": reason, "message": message}}}],
    }


def said_by_drive(store: Store, run: dict[str, Any]) -> list[str]:
    config, said = two_tasks(runner="kubeflow"), list[str]()
    steps = Steps(config, Kubeflow(config.place), store, lambda: config, warned=said.append)
    steps.wait(steps.run(steps.kubeflow.get_run(run["run_id"])))
    return said


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (unscheduled("Unschedulable", NO_GPU), "waits for a node (0/1 nodes are available: 1 Insufficient nvidia"),
        (
            unscheduled("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
            "its queue lets it",
        ),
        (
            stuck("ImagePullBackOff", NO_IMAGE),
            "correct place.images.evaluate or place.pull_secrets, then `cycleqd cancel`",
        ),
        (stuck("CreateContainerConfigError", NO_KEY), f"cannot start ({NO_KEY}): have that in namespace 'kubeflow'"),
        (
            stuck("CreateContainerError", "no such thing"),
            "waits (CreateContainerError: no such thing): `kubectl -n kubeflow",
        ),
    ],
)
def test_why_a_task_waits_is_said_once_with_what_to_do(
    run: tuple[Backend, dict[str, Any]], store: Store, status: dict[str, Any], said: str
) -> None:
    state, one = run
    state.pods = [pending(one, **status), pending({"run_id": "another"}, **status)]
    (sentence,) = said_by_drive(store, one)
    assert sentence.startswith("task evaluate-child ") and said in sentence and "\n" not in sentence
    assert len([call for call in state.calls if call.endswith("/pods")]) >= 3, "it looked again, and said nothing"


def test_an_image_that_is_tried_again_and_again_is_said_once(run: tuple[Backend, dict[str, Any]], store: Store) -> None:
    state, one = run
    state.pods = [pending(one, **stuck("ErrImagePull", NO_IMAGE)), pending(one, **stuck("ImagePullBackOff", NO_IMAGE))]
    assert len(said_by_drive(store, one)) == 1


def test_tasks_of_one_kind_that_wait_for_the_same_are_one_sentence(
    run: tuple[Backend, dict[str, Any]], store: Store
) -> None:
    state, one = run
    status = unscheduled("Unschedulable", NO_GPU)
    tasks = ("evaluate-models", "evaluate-models-2", "evaluate-models-3")
    state.pods = [*(pending(one, task, **status) for task in tasks), pending(one, "merge", "weights", **status)]
    first, second = said_by_drive(store, one)
    assert first.startswith("task evaluate-models (and 2 more) waits") and "place.evaluate asks for" in first
    assert second.startswith("task merge waits") and "place.weights asks for" in second


def test_what_lasts_for_one_look_is_not_said(
    run: tuple[Backend, dict[str, Any]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, one = run
    state.pods = [pending(one, **unscheduled("Unschedulable", NO_GPU))]
    look = waiting.Waits.look

    def once(self: waiting.Waits, run_id: str) -> Any:
        found = look(self, run_id)
        state.pods = []
        return found

    monkeypatch.setattr(waiting.Waits, "look", once)
    assert said_by_drive(store, one) == []


def test_a_volume_that_is_not_there_is_told_by_the_pods_events(
    run: tuple[Backend, dict[str, Any]], store: Store
) -> None:
    state, one = run
    missing = 'MountVolume.SetUp failed for volume "authorities" : configmap "authorities" not found'
    state.pods = [pending(one, **stuck("ContainerCreating", ""))]
    kinds = (("Normal", "x-evaluate-child", "Scheduled"), ("Warning", "y", "FailedMount"))
    state.events = [
        {
            "type": kind,
            "reason": reason,
            "message": missing,
            "involvedObject": {"kind": "Pod", "name": name},
            "metadata": {},
        }
        for kind, name, reason in (*kinds, ("Warning", "x-evaluate-child", "FailedMount"))
    ]
    (sentence,) = said_by_drive(store, one)
    assert f"task evaluate-child waits for a volume ({missing})" in sentence


def test_a_quota_that_keeps_pods_from_being_made_is_told_by_the_workflow(
    run: tuple[Backend, dict[str, Any]], store: Store
) -> None:
    state, one = run
    nodes = {
        "a": {"displayName": "evaluate-child", "phase": "Running"},
        "b": {"displayName": "executor(0)", "boundaryID": "a", "phase": "Pending", "message": NO_QUOTA},
        "c": {"displayName": "merge", "phase": "Pending", "message": ""},
    }
    state.workflows = [{"metadata": {"labels": {"pipeline/runid": one["run_id"]}}, "status": {"nodes": nodes}}]
    (sentence,) = said_by_drive(store, one)
    assert (
        "task evaluate-child waits for the quota of namespace 'kubeflow' (exceeded quota: cycleqd, requested"
        in sentence
    )


@pytest.mark.parametrize("why", ["forbidden", "no kubeconfig", "away"])
def test_where_kubernetes_does_not_tell_nothing_is_said(
    run: tuple[Backend, dict[str, Any]], store: Store, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    state, one = run
    state.pods = [pending(one, **unscheduled("Unschedulable", NO_GPU))]
    if why == "forbidden":
        state.forbidden = ("pods", "workflows", "events")
    elif why == "no kubeconfig":
        monkeypatch.setenv("KUBECONFIG", "/nowhere")
    else:
        state.faults = [("GET /api/v1/", "500")] * 99
    assert said_by_drive(store, one) == []
    asked = [call for call in state.calls if "/namespaces/" in call]
    assert why == "away" or len(asked) <= 2, "what is refused is not asked for again"


def test_runs_that_wait_say_so_in_their_list(run: tuple[Backend, dict[str, Any]]) -> None:
    state, one = run
    state.experiments[one["experiment_id"]]["display_name"] = "llama3-published"
    one["display_name"] = "llama3-published-generation-000003"
    state.pods = [pending(one, **unscheduled("Unschedulable", NO_GPU))]
    done = CliRunner().invoke(app, ["runs", "-c", str(LLAMA3)])
    assert done.exit_code == 0, done.output
    assert "generation-000003: task evaluate-child waits for a node" in " ".join(done.output.split())
