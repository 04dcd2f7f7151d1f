"""The calls of the Kubernetes API that are used, on the cluster behind a server of Kubeflow Pipelines."""

from __future__ import annotations

from typing import Any

from tests.run.kfp_backend import Backend, Refusal


def kubernetes(state: Backend, path: str, query: dict[str, str]) -> Any:
    """What is asked of it: named objects, pods and their logs, events, workflows."""
    if path.startswith("/apis/argoproj.io/"):
        return _workflows(state, path.split("/")[-1], query)
    parts = path.removeprefix("/api/v1/").split("/")
    kind = parts[2] if len(parts) > 2 else parts[0]
    if kind in state.forbidden:
        raise Refusal(403, f'{kind} "{parts[-1]}" is forbidden: User "u" cannot get resource')
    if kind == "pods" and parts[-1] == "log":
        if parts[3] not in state.pod_logs:
            raise Refusal(400, f'container "main" in pod "{parts[3]}" is waiting to start: ImagePullBackOff')
        assert query["container"] == "main"
        return "\n".join(state.pod_logs[parts[3]].splitlines()[-int(query["tailLines"]) :])
    if kind == "pods":
        label, _, value = query["labelSelector"].partition("=")
        return {"items": [p for p in state.pods if p["metadata"]["labels"].get(label) == value], "metadata": {}}
    if kind == "events":
        wanted = dict(part.split("=") for part in query["fieldSelector"].split(","))
        return {"items": [event for event in state.events if wanted.items() <= _fields(event).items()], "metadata": {}}
    named = {"secrets": state.secrets, "configmaps": state.config_maps}.get(kind, {})
    if parts[-1] not in named:
        raise Refusal(404, f'{kind} "{parts[-1]}" not found')
    return {"metadata": {"name": parts[-1]}, "data": named[parts[-1]]}


def _workflows(state: Backend, kind: str, query: dict[str, str]) -> Any:
    if kind in state.forbidden:
        raise Refusal(403, f'{kind}.argoproj.io is forbidden: User "u" cannot list resource')
    label, _, wanted = query["labelSelector"].partition("=")
    held = [one for one in state.workflows if one["metadata"]["labels"].get(label) == wanted]
    if held:
        return {"items": held}
    there = [run for run in state.runs if run not in state.taken and wanted in ("", run)]
    return {"items": [_workflow(state, label, run) for run in there[: int(query["limit"])]]}


def _workflow(state: Backend, label: str, run: str) -> Any:
    ended = {"activeDeadlineSeconds": 0} if run in state.terminated else {}
    return {"metadata": {"labels": {label: run}}, "spec": ended}


def _fields(event: Any) -> dict[str, Any]:
    return {**{f"involvedObject.{name}": value for name, value in event["involvedObject"].items()}, **event}
