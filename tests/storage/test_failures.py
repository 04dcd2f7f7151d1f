"""What a failed task leaves in S3, by the real stages, and what is read of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cycleqd import errors
from cycleqd.errors import CycleQDError, EvaluationError, InvalidInputError, UnavailableError
from cycleqd.storage import run_layout
from cycleqd.storage.failures import find_failure, recorded
from cycleqd.storage.objects import Store
from tests.evolution import Evolution


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment of a task's pod; its run's id."""
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.setenv("KFP_POD_NAME", "pod-1")
    yield "run-1"


def fail(store: Store, error: Exception, task: str = "merge", *given: str) -> None:
    with pytest.raises(type(error)), recorded(store, task, *given):
        raise error


def test_a_failure_is_recorded_with_its_run_pod_and_children_and_goes_on(store: Store, pod: str) -> None:
    fail(store, InvalidInputError("no such model"), "merge", '{"generation": 3, "child": "g000003-c01"}')
    found = find_failure(store, pod)
    assert found is not None and found.refusal
    assert (found.task, found.models, found.kind, found.exit_code) == (
        "merge",
        ("g000003-c01",),
        "InvalidInputError",
        2,
    )
    assert (found.sentence, found.kfp_run, found.kfp_pod) == ("no such model", "run-1", "pod-1")
    assert str(found) == "merge g000003-c01: no such model"


def test_on_this_machine_the_runner_names_the_file_of_a_failure(
    store: Store, pod: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "failure.json"
    monkeypatch.setenv("CYCLEQD_FAILURE", str(file))
    with recorded(store, "seed"):
        pass
    assert not file.exists()
    fail(store, EvaluationError("it does not load"), "evaluate", "g000003-c01")
    found = json.loads(file.read_text())
    assert (found["kind"], found["sentence"], found["models"]) == (
        "EvaluationError",
        "it does not load",
        ["g000003-c01"],
    )
    assert find_failure(store, pod) is None


def test_refusals_are_the_errors_that_repeating_cannot_help(store: Store, pod: str) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CycleQDError)]
    for kind in kinds:
        fail(store, kind("x"))
        found = find_failure(store, pod)
        assert found is not None and errors.named(found.kind) is kind
        assert found.refusal == (kind.exit_code in (2, 3, 4, 6)), kind
    assert len(kinds) == 7
    fail(store, MemoryError("no room"))
    found = find_failure(store, pod)
    assert found is not None and not found.refusal and found.sentence == "MemoryError: no room" and found.exit_code == 1
    assert errors.named(found.kind) is None and errors.named("REFUSALS") is None


def test_a_refusal_tells_more_than_what_failed_later(store: Store, pod: str) -> None:
    fail(store, EvaluationError("out of memory"), "evaluate", '["g000003-c00"]')
    fail(store, UnavailableError("S3 is away"), "evaluate", '["g000003-c01"]')
    found = find_failure(store, pod)
    assert found is not None and found.sentence == "out of memory"


def test_a_task_that_begins_again_supersedes_its_own_record_only(store: Store, pod: str) -> None:
    fail(store, InvalidInputError("one"), "merge", "a")
    fail(store, UnavailableError("two"), "merge", "b")
    with recorded(store, "merge", "a"):
        now = find_failure(store, pod)  # whatever kills it now, the refusal is not believed again
        assert now is not None and now.sentence == "two"
    with recorded(store, "merge", "b"):
        pass
    assert find_failure(store, pod) is None and store.list(run_layout.failures(pod)) == {}


def test_another_run_knows_nothing_of_it(store: Store, pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(store, InvalidInputError("of an earlier run"))
    monkeypatch.setenv("KFP_RUN_ID", "run-10")
    assert find_failure(store, "run-10") is None
    fail(store, UnavailableError("of this run"))
    found = find_failure(store, "run-10")
    assert found is not None and found.sentence == "of this run"


def test_outside_a_cluster_nothing_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    fail(store, InvalidInputError("x"))
    assert store.list("") == {}


def test_where_s3_fails_the_error_itself_goes_on(store: Store, pod: str) -> None:
    dead = Store(store.client, "no-such-bucket", store.evolution)
    with pytest.raises(UnavailableError, match="no-such-bucket"), recorded(dead, "merge"):
        pass
    with pytest.raises(InvalidInputError, match="mine"), recorded(store, "merge"):
        store.bucket = "no-such-bucket"
        raise InvalidInputError("mine")


def test_what_is_no_record_is_said(store: Store, pod: str) -> None:
    store.put(run_layout.failure(pod, "merge-1"), b'{"format": 1, "task": "merge"}')
    with pytest.raises(errors.IntegrityError, match=r"merge-1\.json is not the record of a failure"):
        find_failure(store, pod)


def test_every_stage_records_what_it_refuses(evolution: Callable[..., Evolution], pod: str, tmp_path: Path) -> None:
    """Each called with what it cannot do, before anything was seeded."""
    from components.aggregate.stage import run as aggregate
    from components.basis.stage import run as basis
    from components.evaluate.stage import run as evaluate
    from components.merge.stage import run as merge
    from components.mutate.stage import run as mutate
    from components.select_parents.stage import run as select
    from components.update_archives.stage import run as update

    made = evolution()
    item = json.dumps({"generation": 0, "child": "g000000-c00"})
    broken = json.loads(json.dumps(made.tree))
    broken["models"]["base"] = str(tmp_path / "nowhere")
    calls: dict[str, Callable[[], object]] = {
        "seed": lambda: made.seed(broken),
        "select-parents": lambda: select(made.store.evolution, 0),
        "basis": lambda: basis(made.store.evolution, made.profile),
        "merge": lambda: merge(made.store.evolution, [item], made.profile),
        "mutate": lambda: mutate(made.store.evolution, [item], made.profile),
        "evaluate": lambda: evaluate(made.store.evolution, '["base"]', '["x"]', "neither", made.profile),
        "update-archives": lambda: update(made.store.evolution, 0, made.profile),
        "aggregate": lambda: aggregate(made.store.evolution, made.profile),
    }
    for task, call in calls.items():
        with pytest.raises(CycleQDError) as caught:
            call()
        found = find_failure(made.store, pod)
        assert found is not None and found.refusal, task
        assert (found.task, found.sentence, found.kind) == (task, str(caught.value), type(caught.value).__name__)
        made.store.delete_prefix(run_layout.failures(pod))
