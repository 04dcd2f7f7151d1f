"""An HTTP server that speaks Kubeflow Pipelines' v2beta1 REST, as far as it is used, and a few of Kubernetes' calls.

Bodies of requests are held to kfp_server_api's own models: a field that these do not know is an error 400, as it is
with the real server. Runs go through scripted states, one a poll; what a run does when it succeeds is the test's.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kfp_server_api as api
import yaml

from tests.run.kfp_backend import ENDED, SUCCEEDING, Backend, Refusal
from tests.run.kubernetes_api import kubernetes


def strictly(kind: type, body: dict[str, Any]) -> dict[str, Any]:
    """The body, if it has no field but those of the model, whose values are of the model's kinds."""
    names = {given: name for name, given in kind.attribute_map.items()}  # type: ignore[attr-defined]
    unknown = set(body) - set(names)
    if unknown:
        raise Refusal(400, f"unknown fields {sorted(unknown)} of {kind.__name__}")
    for given, value in body.items():
        inner = getattr(api, kind.openapi_types[names[given]], None)  # type: ignore[attr-defined]
        if isinstance(value, dict) and inner is not None:
            strictly(inner, value)
    kind(**{names[given]: value for given, value in body.items()})  # the model's own checks
    return body


class Server:
    """Routes of both APIs."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        path = re.sub(r"^/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy", "", path)
        if path.startswith(("/api/v1/", "/apis/argoproj.io/")):
            return kubernetes(self.backend, path, query)
        if version := re.fullmatch(r"/apis/v2beta1/pipelines/[^/]+/versions/([^/]+)", path):
            return self.version(version[1])
        found = re.fullmatch(r"/apis/v2beta1/([a-z_/]+?)(?:/([^/:]+))?(?:/(versions))?(?::([a-z]+))?", path)
        if not found:
            raise Refusal(404, f"no {path}")
        kind, one, under, verb = found.groups()
        handler = getattr(self, kind.replace("/", "_"))
        return handler(method, one, under or verb, query, body)

    def healthz(self, *rest: Any) -> Any:
        state = self.backend
        return {
            "commit_sha": "unknown",
            "tag_name": state.tag_name,
            "multi_user": state.multi_user,
            "pipeline_store": "database",
        }

    def experiments(self, method: str, one: str | None, verb: str | None, query: dict[str, str], body: bytes) -> Any:
        if method == "POST":
            wanted = strictly(api.V2beta1Experiment, json.loads(body))
            self.need_namespace(wanted.get("namespace"))
            if any(e["display_name"] == wanted["display_name"] for e in self.backend.experiments.values()):
                raise Refusal(
                    409, f"Already exist error: An experiment with name {wanted['display_name']} already exists"
                )
            made = self.backend.add_experiment(wanted["display_name"], wanted.get("namespace", ""))
            return self.backend.experiments[made]
        self.need_namespace(query.get("namespace"))
        return self.listed("experiments", self.backend.experiments, query)

    def pipelines(self, method: str, one: str | None, verb: str | None, query: dict[str, str], body: bytes) -> Any:
        state = self.backend
        if one == "upload_version":
            return self.upload(query, body)
        if verb == "versions":
            inside = {k: v for k, v in state.versions.items() if v["pipeline_id"] == one}
            return self.listed("pipeline_versions", inside, query)
        if method == "POST":
            wanted = strictly(api.V2beta1Pipeline, json.loads(body))
            self.need_namespace(wanted.get("namespace"))
            if any(p["name"] == wanted["name"] for p in state.pipelines.values()):
                raise Refusal(409, "Already exist error: The name is already used by another pipeline")
            made = state.identifier("pipeline")
            state.pipelines[made] = {"pipeline_id": made, **wanted}
            return state.pipelines[made]
        return self.listed("pipelines", state.pipelines, query)

    def version(self, one: str) -> Any:
        if one not in self.backend.versions:
            raise Refusal(404, f"PipelineVersion {one} not found")
        return self.backend.versions[one]

    def upload(self, query: dict[str, str], body: bytes) -> Any:
        state = self.backend
        content = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        documents = list(yaml.safe_load_all(content))
        if "pipelineInfo" not in documents[0]:
            raise Refusal(400, "not a pipeline")
        if query["pipelineid"] not in state.pipelines:
            raise Refusal(400, "Failed to create a pipeline version. Error reading namespace")
        if any(v["name"] == query["name"] and v["pipeline_id"] == query["pipelineid"] for v in state.versions.values()):
            raise Refusal(409, "Failed to create a pipeline version")
        made = state.identifier("version")
        state.versions[made] = {
            "pipeline_version_id": made,
            "pipeline_id": query["pipelineid"],
            "name": query["name"],
            "display_name": query["name"],
            "pipeline_spec": dict(zip(("pipeline_spec", "platform_spec"), documents, strict=False)),
        }
        return state.versions[made]

    def runs(self, method: str, one: str | None, verb: str | None, query: dict[str, str], body: bytes) -> Any:
        state = self.backend
        if one is None and method == "POST":
            wanted = strictly(api.V2beta1Run, json.loads(body))
            self.need_version(wanted)
            if wanted["experiment_id"] not in state.experiments:
                raise Refusal(404, f"Experiment {wanted['experiment_id']} not found")
            script = state.scripts.pop(0) if state.scripts else SUCCEEDING
            account = wanted.get("service_account") or "pipeline-runner"
            more = {k: v for k, v in wanted.items() if k not in ("experiment_id", "display_name")}
            return state.add_run(
                wanted["display_name"],
                *script,
                experiment=wanted["experiment_id"],
                **{**more, "service_account": account},
            )
        if one is None:
            runs = {k: v for k, v in state.runs.items() if v["experiment_id"] == query.get("experiment_id")}
            for run in runs.values():
                coming = state.states[run["run_id"]][0]
                if run["state"] not in ENDED and coming not in ENDED:  # a run ends, and does its work, in a poll
                    state.report(run, coming)
            return self.listed("runs", runs, query)
        if one not in state.runs:
            raise Refusal(404, f"Failed to get a run: ResourceNotFoundError: Run {one} not found")
        run = state.runs[one]
        if verb == "retry":
            if run["state"] != "FAILED":
                raise Refusal(400, "Workflow must be Failed/Error to retry")
            state.retry(run)
            return {}
        if verb == "archive":
            run["storage_state"] = "ARCHIVED"
            return {}
        if verb == "terminate":
            if run["state"] in ENDED or run["state"] == "CANCELING":
                raise Refusal(400, f"Failed to terminate a run {one}. Row not found")
            state.terminate(run)
            if one in state.taken:
                raise Refusal(500, f"Failed to terminate workflow of {one} due to patching error")
            return {}
        return state.poll(run)

    def recurringruns(self, method: str, one: str | None, verb: str | None, query: dict[str, str], body: bytes) -> Any:
        state = self.backend
        if method == "DELETE":
            if state.schedules.pop(one or "", None) is None:
                raise Refusal(404, f"Job {one} not found")
            if query.get("propagation_policy") != "ORPHAN":
                state.collect(one or "")
            return {}
        if verb == "disable":
            state.schedules[one or ""] |= {"mode": "DISABLE", "status": "DISABLED"}
            return {}
        if method == "POST":
            wanted = strictly(api.V2beta1RecurringRun, json.loads(body))
            self.need_version(wanted)
            if len(wanted["trigger"]["cron_schedule"]["cron"].split()) != 6:
                raise Refusal(400, "Schedule cron is not a supported format")
            if not 1 <= int(wanted["max_concurrency"]) <= 10:
                raise Refusal(400, "The max concurrency of the job is out of range")
            made = state.identifier("schedule")
            state.schedules[made] = {"recurring_run_id": made, "status": "ENABLED", **wanted}
            return state.schedules[made]
        inside = {k: v for k, v in state.schedules.items() if v["experiment_id"] == query.get("experiment_id")}
        return self.listed("recurringRuns", inside, query)

    def need_version(self, wanted: dict[str, Any]) -> None:
        reference = wanted["pipeline_version_reference"]
        version = self.backend.versions.get(reference["pipeline_version_id"])
        if version is None or version["pipeline_id"] != reference["pipeline_id"]:
            raise Refusal(404, "PipelineVersion not found")
        inputs = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        given = wanted["runtime_config"]["parameters"]
        unknown = set(given) - set(inputs)
        missing = {k for k, v in inputs.items() if not v.get("isOptional") and "defaultValue" not in v} - set(given)
        if unknown or missing:
            raise Refusal(400, f"parameters: unknown {sorted(unknown)}, missing {sorted(missing)}")

    def need_namespace(self, namespace: str | None) -> None:
        if self.backend.multi_user and namespace != "team":
            raise Refusal(403, f"User is not authorized in namespace {namespace!r}")

    def listed(self, kind: str, things: dict[str, dict[str, Any]], query: dict[str, str]) -> Any:
        found = list(things.values())
        if query.get("filter"):
            for predicate in json.loads(query["filter"])["predicates"]:
                assert predicate["operation"] == "EQUALS" and predicate["key"] == "display_name"
                found = [one for one in found if one["display_name"] == predicate["stringValue"]]
        if query.get("sort_by") == "created_at desc":
            found.sort(key=lambda one: one["created_at"], reverse=True)
        start, size = int(query.get("page_token") or 0), min(self.backend.page, int(query["page_size"]))
        token = str(start + size) if start + size < len(found) else ""
        page: dict[str, Any] = {"total_size": len(found)}
        if found[start : start + size]:  # protojson leaves empty lists out
            page[kind] = found[start : start + size]
        return {**page, "next_page_token": token} if token else page


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    server = Server(backend)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def send(self, status: int, value: Any) -> None:
            text = isinstance(value, str)
            data = value.encode() if text else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def reset(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def do_GET(self) -> None:
            url = urlparse(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            call = f"{self.command} {url.path}"
            with backend.lock:
                backend.calls.append(call)
                fault = next((found for found in backend.faults if call.startswith(found[0])), None)
                if fault:
                    backend.faults.remove(fault)
            if fault and fault[1] == "slow":
                time.sleep(2)
            if fault and fault[1] == "reset":
                return self.reset()
            if fault and fault[1].isdigit():
                return self.send(int(fault[1]), {"code": 13, "message": "InternalServerError: the database is away"})
            if backend.token and self.headers["Authorization"] != f"Bearer {backend.token}":
                return self.send(
                    401, {"code": 16, "message": "Request header error: there is no user identity header."}
                )
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            try:
                with backend.lock:
                    value = server.answer(self.command, url.path, query, body)
            except Refusal as refusal:
                return self.send(refusal.status, {"code": 3, "message": str(refusal)})
            if fault and fault[1] == "after reset":
                return self.reset()
            return self.send(200, value)

        do_POST = do_DELETE = do_GET

    return Handler


@contextlib.contextmanager
def serving(
    backend: Backend, address: tuple[str, int] = ("127.0.0.1", 0), tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The server's URL; on a free port unless told."""
    server = ThreadingHTTPServer(address, _handler(backend))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{address[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def leading_to(url: str, folder: Path) -> dict[str, str]:
    """Variables that lead commands to both APIs of a server; the kubeconfig is written to the folder."""
    file = folder / "kubeconfig"
    file.write_text(kubeconfig(url))
    return {"KF_PIPELINES_ENDPOINT": url, "KUBECONFIG": str(file)}


@contextlib.contextmanager
def encrypted(backend: Backend, folder: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a server with TLS, and the certificate that vouches for it."""
    key, certificate = folder / "key.pem", folder / "authority.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(backend, tls=context) as url:
        yield url.replace("http://", "https://"), certificate


def kubeconfig(url: str) -> str:
    """A kubeconfig that names this server."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )
