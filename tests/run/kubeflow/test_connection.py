"""Where a server of Kubeflow Pipelines is, and how it is spoken to (a real one: tests/cluster)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd.errors import CycleQDError, InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.runs import Steps
from cycleqd.storage.objects import Store
from tests.pipelines.configs import two_tasks
from tests.run.kfp_backend import Backend
from tests.run.kfp_server import encrypted, kubeconfig, serving
from tests.run.kubeflow.golden import GENERATION, connect, runs


def test_multi_user_kubeflow_is_told_the_namespace(backend: Backend, store: Store) -> None:
    backend.multi_user = True
    config = two_tasks(runner="kubeflow", namespace="team")
    Steps(config, Kubeflow(config.place), store, lambda: config).start(GENERATION)
    assert [one["namespace"] for one in backend.experiments.values()] == ["team"]
    assert [one["namespace"] for one in backend.pipelines.values()] == ["team"]
    with pytest.raises(InvalidInputError, match=r"does not allow this in namespace 'kubeflow' .*place\.namespace"):
        runs().runs([GENERATION.name])


def test_single_user_kubeflow_is_told_none(backend: Backend, steps: Steps) -> None:
    steps.start(GENERATION)
    assert [one["namespace"] for one in backend.experiments.values()] == [""]


def test_a_token_comes_from_the_environment_or_a_file_that_is_read_again(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.token = "first"
    with pytest.raises(InvalidInputError, match=r"does not accept the credentials .*KF_PIPELINES_TOKEN"):
        connect()
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "first")
    assert connect().version == "2.17.0"
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    client = connect()
    backend.token = "second"
    file.write_text("second\n")
    assert client.find_experiment("golden") is None


def test_the_place_beats_the_environment(backend: Backend) -> None:
    with serving(Backend(tag_name="2.16.1")) as url:
        assert connect(endpoint=f"{url}/").version == "2.16.1"
        assert connect(endpoint=url).url("run-1") == f"{url}/#/runs/details/run-1"


def test_pages_are_where_the_user_interface_is(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline/")
    assert connect().url("run-1") == "https://kubeflow.example/pipeline/#/runs/details/run-1"


@pytest.mark.parametrize("version", ["1.8.5", "v0.5"])
def test_version_one_is_refused(backend: Backend, version: str) -> None:
    backend.tag_name = version
    with pytest.raises(InvalidInputError, match=f"is Kubeflow Pipelines {version}; version 2 is needed"):
        connect()


def test_another_server_is_refused(backend: Backend) -> None:
    backend.faults = [("GET /apis/v2beta1/healthz", "404")]
    with pytest.raises(InvalidInputError, match="answers, but not as the API of Kubeflow Pipelines 2"):
        connect()


@pytest.mark.parametrize(
    ("endpoint", "kind", "words"),
    [
        ("http://127.0.0.1:9", UnavailableError, r"does not answer at http://127.0.0.1:9 .*KF_PIPELINES_ENDPOINT"),
        ("127.0.0.1:9", InvalidInputError, "begin it with http:// or https://"),
        ("http://me:hidden@127.0.0.1:9", InvalidInputError, "holds credentials; leave them out"),
    ],
)
def test_an_endpoint_that_leads_nowhere_is_one_sentence(
    endpoint: str, kind: type[CycleQDError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", endpoint)
    with pytest.raises(kind, match=words) as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_a_certificate_that_nobody_vouches_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with encrypted(Backend(), tmp_path) as (url, authority):
        with pytest.raises(UnavailableError, match=r"place\.tls_ca"):
            connect(endpoint=url)
        assert connect(endpoint=url, tls_ca=str(authority)).version == "2.17.0"


def test_tls_to_a_server_without_it_is_said(backend: Backend) -> None:
    with serving(backend) as url, pytest.raises(UnavailableError, match="does not speak TLS; begin the endpoint with"):
        connect(endpoint=url.replace("http:", "https:"))


def test_without_an_endpoint_the_kubeconfig_leads_to_the_server(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match="no address of Kubeflow Pipelines is known"):
        connect()
    with serving(backend) as url:
        (tmp_path / "config").write_text(kubeconfig(url))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        assert connect().version == "2.17.0"
        assert connect().find_experiment("golden") is None
    asked = [call.partition("/proxy")[2] for call in backend.calls if "/services/ml-pipeline:http/proxy/" in call]
    assert asked[-1] == "/apis/v2beta1/experiments" and len(asked) == len(backend.calls)
