"""cycleqd list and delete: what is in the bucket, and one evolution out of it, of S3 and of MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.storage.objects import Store
from cycleqd.tracking.deleting import count_runs
from cycleqd.tracking.tracker import Ids, NewRun, Tracker
from tests.run.conftest import Finished

Call = Callable[..., Any]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def twin(finished: Finished) -> Iterator[Store]:
    """The finished evolution's objects under another name, with an experiment of two runs."""
    session = finished.session
    store = Store(session.store.client, session.store.bucket, "twin")
    for key, data in finished.content.items():
        store.put(key, data)
    tracker = Tracker(session.settings)
    experiment = tracker.experiment(store, "a twin")
    tracker.create_runs(store, "seed/mlflow.json", experiment, [NewRun(k, k, k, {}) for k in "ab"], Ids(experiment))
    yield store
    store.delete_prefix("")


def test_every_evolution_of_the_bucket_is_listed(call: Call, finished: Finished, twin: Store) -> None:
    finished.session.store.client.put_object(Bucket=twin.bucket, Key="others/notes.txt", Body=b"no evolution")
    twin.put("HEAD.json", b"{")
    rows = {row["evolution"]: row for row in call("list")}
    assert sorted(rows) == ["twin", "world"]
    world = rows["world"]
    assert (world["generations"], world["planned"], world["problem"]) == (2, 2, None)
    assert world["best_average"] == finished.summary["best_average"]["average"]
    assert world["bytes"] == sum(finished.session.store.list("").values())
    assert "HEAD.json is not" in rows["twin"]["problem"], "one that cannot be read hides no other"


def test_deleting_says_what_it_frees_and_asks(call: Call, finished: Finished, twin: Store) -> None:
    arguments = ["delete", "twin", "-c", str(finished.path)]
    objects = twin.list("")
    asked = CliRunner().invoke(app, arguments)
    assert asked.exit_code == 2 and f"{len(objects)} objects of s3://" in asked.stderr and "--yes" in asked.stderr
    assert "2 runs in MLflow" in asked.stderr and twin.list("") == objects
    done = CliRunner().invoke(app, [*arguments, "--yes", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts == {
        "evolution": "twin",
        "objects": len(objects),
        "bytes": sum(objects.values()),
        "mlflow_runs": 2,
        "kubeflow_runs": 0,
    }
    assert not twin.list("") and [row["evolution"] for row in call("list")] == ["world"]
    tracker = Tracker(finished.session.settings)
    assert count_runs(tracker, twin) == 0
    again = tracker.experiment(twin, "the name is free again")
    assert tracker.search(again, "") == []
    gone = CliRunner().invoke(app, arguments)
    assert gone.exit_code == 2 and "there is no evolution 'twin'" in gone.stderr
