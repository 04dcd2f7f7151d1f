"""Every stage is killed (SIGKILL) before each of its changing requests and run again: nothing of the result differs.

A killed stage leaves what S3 and MLflow had acknowledged by then. The killing is done from outside: the process that
runs the stage counts the requests that change something, to S3 and to MLflow alike, and kills itself before the n-th.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cycleqd.search import config as configuration
from cycleqd.storage.client import connect_client
from cycleqd.storage.evolution import current
from cycleqd.storage.finalising import scored_models
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking.unlogged import pending
from tests.evolution import EXPERTS, Evolution, write_adapters
from tests.ledger import ledger

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.preloaded"])

Call = tuple[str, list[Any]]
"""A method of Evolution and its arguments."""


def in_process(environment: Mapping[str, str], tree: Mapping[str, Any], call: Call, fatal: int) -> None:
    """Run a stage and be killed before its `fatal`-th changing request (0: never)."""
    from urllib3.connectionpool import HTTPConnectionPool

    os.environ.update(environment)
    send, count = HTTPConnectionPool.urlopen, 0

    def counted(pool: HTTPConnectionPool, method: str, url: str, *args: Any, **more: Any) -> Any:
        nonlocal count
        if method in ("PUT", "POST", "PATCH", "DELETE") and not url.endswith("/search"):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return send(pool, method, url, *args, **more)

    HTTPConnectionPool.urlopen = counted
    getattr(Evolution(configuration.parse(tree, "test")), call[0])(*call[1])


def run(environment: Mapping[str, str], tree: Mapping[str, Any], call: Call, fatal: int = 0) -> bool:
    """Whether the stage ended by itself; any end but success and SIGKILL is a failure."""
    process = _PROCESSES.Process(target=in_process, args=(dict(environment), dict(tree), call, fatal))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"{call} killed before request {fatal} cannot be repeated"
    return process.exitcode == 0


@dataclass
class Disturbed:
    """Runs each stage again and again, killed before its 1st, 2nd, 3rd … changing request, until it survives."""

    environment: Mapping[str, str]
    kills: int = 0

    def __call__(self, tree: Mapping[str, Any], call: Call, stride: int) -> None:
        fatal = 1
        while not run(self.environment, tree, call, fatal):
            self.kills += 1
            fatal += stride
        assert fatal > 1, f"{call} was never killed"


@dataclass
class Undisturbed:
    """Runs each stage once."""

    environment: Mapping[str, str]

    def __call__(self, tree: Mapping[str, Any], call: Call, stride: int) -> None:
        assert run(self.environment, tree, call)


def evolve(evolution: Evolution, step: Disturbed | Undisturbed) -> None:
    """Seeding, a generation of two children made by merge alone, one with mutate apart, the final model."""
    tree = evolution.tree
    apart = {**tree, "place": {**tree["place"], "fused": False}}
    step(tree, ("seed", []), 9)
    step(tree, ("evaluate", [["base", "expert-a", "expert-b", "expert-c"]]), 4)
    step(tree, ("update", [-1]), 2)
    for generation, how, stride in ((0, tree, 1), (1, apart, 4)):
        step(how, ("select", [generation]), stride)
        children = [f"g{generation:06d}-c{index:02d}" for index in range(2)]
        for child in children:
            item = json.dumps({"generation": generation, "child": child})
            step(how, ("merge", [item]), stride if child == children[0] else 5)
            if how is apart:
                step(how, ("mutate", [item]), stride if child == children[0] else 5)
        step(how, ("evaluate", [children]), stride + 3)
        step(how, ("update", [generation]), stride)
    step(tree, ("aggregate", []), 6)
    step(tree, ("evaluate", [["aggregated"]]), 8)
    step(tree, ("choose", []), 5)
    scored = finalists(evolution)
    step(tree, ("evaluate", [scored]), 40)
    step(tree, ("evaluate", [scored, "test"]), 40)


def finalists(evolution: Evolution) -> list[str]:
    """The models that finalising scores: what it does last ends the evolution in MLflow."""
    models = scored_models(evolution.config, evolution.store, current(evolution.store)[1])
    assert models is not None
    return models


def evolve_in_span(evolution: Evolution, step: Disturbed | Undisturbed) -> None:
    """Seeding with adapters, a generation of two cores made and scored together, the final model.

    Two experts are equal, and children are means: models that share an object.
    """
    tree = evolution.tree
    step(tree, ("seed", []), 12)
    step(tree, ("basis", []), 2)
    step(tree, ("evaluate", [["base", "expert-a", "expert-b", "expert-c"]]), 12)
    step(tree, ("update", [-1]), 9)
    step(tree, ("select", [0]), 9)
    children = [f"g000000-c{index:02d}" for index in range(2)]
    loop = [json.dumps({"generation": 0, "child": child}) for child in children]
    step(tree, ("merge", loop), 2)
    step(tree, ("mutate", loop), 2)
    step(tree, ("evaluate", [children]), 5)
    step(tree, ("update", [0]), 1)
    step(tree, ("aggregate", []), 3)
    step(tree, ("evaluate", [["aggregated"]]), 9)
    step(tree, ("choose", []), 3)


Evolve = Callable[[Evolution, Disturbed | Undisturbed], None]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("evolve", "kills"), [(evolve, 80), (evolve_in_span, 30)], ids=["dense", "span"])
def test_killed_stages_leave_the_same_evolution(
    evolve: Evolve,
    kills: int,
    environment: dict[str, str],
    tiny_models: Path,
    tiny_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, changes = f"kill-{environment['CYCLEQD_BUCKET']}", {"method": {"generations": 2, "children": 2}}
    if evolve is evolve_in_span:
        experts = {expert: {"path": str(tmp_path / expert)} for expert in EXPERTS}
        write_adapters(tiny_models, tmp_path)
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        operators = {"crossover": {"sigma": 0.0}, "mutation": {"kind": "none"}}
        changes = {"method": {"generations": 1, "children": 2, **operators}, "models": {"experts": experts}}
    evolution = Evolution.make(name, tiny_models, tiny_tasks, changes)
    evolve(evolution, Undisturbed(environment))
    undisturbed = evolution.store
    expected = ledger(name)
    expected.rename(f"{name}-undisturbed")  # the name makes way for the other evolution
    other = {**environment, "CYCLEQD_BUCKET": f"{environment['CYCLEQD_BUCKET']}-killed"}
    client = connect_client(Settings.from_environment(other))
    client.create_bucket(Bucket=other["CYCLEQD_BUCKET"])
    monkeypatch.setenv("CYCLEQD_BUCKET", other["CYCLEQD_BUCKET"])
    disturb = Disturbed(other)
    evolve(evolution, disturb)
    assert disturb.kills > kills
    compare_buckets(undisturbed, evolution.store)
    found = ledger(name)
    assert not pending(undisturbed) and not pending(evolution.store)
    assert found.runs.keys() == expected.runs.keys()
    for key, entry in expected.runs.items():
        assert found.runs[key] == entry, key
    assert not list(evolution.store.uploads())
    client.delete_bucket(Bucket=other["CYCLEQD_BUCKET"])


def compare_buckets(expected: Store, found: Store) -> None:
    """The same keys; the same bytes, but for what tells when and where something was computed."""
    assert sorted(found.list("")) == sorted(expected.list(""))
    for key in expected.list(""):
        if not key.endswith(("run.json", "mlflow.json")):
            assert found.get(key) == expected.get(key), key
