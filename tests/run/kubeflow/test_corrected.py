"""A failed run is retried in place only where what it was compiled from is the same now; else a new run replaces it."""

from __future__ import annotations

from typing import Any

import pytest

from cycleqd.errors import ConflictError, EvaluationError, InvalidInputError, UnavailableError
from cycleqd.run.decisions import Halt, Position, Replace, Retry
from cycleqd.run.kubeflow.compiled import Compiled, changed
from cycleqd.run.kubeflow.runs import Steps
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import keep
from tests.run.kfp_backend import Backend
from tests.run.kubeflow.golden import GENERATION, NAME, Driver, by_hand, failing


def fail_with(backend: Backend, store: Store, error: Exception | None = None, **place: Any) -> dict[str, Any]:
    """A run of the generation that has failed, compiled with these settings."""
    backend.ends = failing([error or InvalidInputError("no such model")], store)
    with pytest.raises((ConflictError, InvalidInputError, EvaluationError)):
        Driver(backend, store, retries=0, **place).drive()
    backend.ends = lambda run: None
    return list(backend.runs.values())[-1]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"images": {"evaluate": "registry/evaluate:fixed"}}, "image cycleqd/evaluate:0.2.0 → registry/evaluate:fixed"),
        ({"weights": {"memory": "16G"}}, "place.weights.memory 8G → 16G"),
        ({"service_account": "evolver"}, "place.service_account pipeline-runner → evolver"),
        ({"group": "child"}, "place.group task → child"),
    ],
)
def test_a_run_whose_image_or_placement_was_corrected_is_replaced_even_after_a_refusal(
    backend: Backend, store: Store, place: dict[str, Any], words: str
) -> None:
    run = fail_with(backend, store)
    driver = Driver(backend, store, **place)
    assert driver.drive() == [f"{run['run_id']}:archive", "runs"]
    (action,) = [one for one in driver.actions if isinstance(one, Replace)]
    assert words in action.run.outdated and "folder" not in action.run.outdated
    assert [one["state"] for one in backend.runs.values()] == ["FAILED", "SUCCEEDED"]


def test_what_only_commands_read_makes_no_new_run(backend: Backend, store: Store) -> None:
    """A laptop's driver and the cluster's have folders and addresses of their own."""
    run = fail_with(backend, store, UnavailableError("S3 is away"))
    other = {"folder": "/elsewhere", "retries": 7, "parallelism": 9, "tls_ca": None}
    driver = Driver(backend, store, **other)
    assert driver.drive() == [f"{run['run_id']}:retry"]
    assert any(isinstance(one, Retry) for one in driver.actions)


def test_a_new_run_has_all_repetitions_though_the_old_one_had_used_them_up(backend: Backend, store: Store) -> None:
    backend.ends = failing([UnavailableError("S3 is away")] * 5, store)
    with pytest.raises(ConflictError, match="failed 3 times"):
        Driver(backend, store).drive()
    backend.ends = failing([UnavailableError("S3 is away")] * 2 + [None], store)
    posts = Driver(backend, store, threads=1).drive()
    new = list(backend.runs)[-1]
    assert posts[1:] == ["runs", f"{new}:retry", f"{new}:retry"] and posts[0].endswith(":archive")


def test_fresh_replaces_what_has_failed_once_and_retries_what_fails_then(backend: Backend, store: Store) -> None:
    run = fail_with(backend, store)
    with pytest.raises(InvalidInputError, match="drive with --fresh"):
        Driver(backend, store).drive()
    backend.ends = failing([UnavailableError("S3 is away"), None], store)
    posts = Driver(backend, store, fresh=True).drive()
    new = list(backend.runs)[-1]
    assert posts == [f"{run['run_id']}:archive", "runs", f"{new}:retry"]


def test_fresh_replaces_a_run_whose_records_are_gone_and_none_that_is_in_flight(backend: Backend, store: Store) -> None:
    run = backend.add_run(NAME, "RUNNING")
    with pytest.raises(ConflictError, match=r"is in flight, and --fresh .* `cycleqd cancel generation-000003`"):
        Driver(backend, store, fresh=True).drive()
    backend.states[run["run_id"]] = ["SUCCEEDED"]
    backend.report(run, "SUCCEEDED")
    for fresh in (False, True):
        driver = Driver(backend, store, fresh=fresh)
        driver.driver.position = lambda: Position(GENERATION, None)
        action, _ = driver.driver.next()
        if fresh:
            assert isinstance(action, Replace) and action.run.id == run["run_id"]
        else:
            assert isinstance(action, Halt) and "have the step run again: cycleqd drive --fresh" in action.sentence


def test_two_drivers_of_different_settings_do_not_replace_each_others_runs_for_ever(
    backend: Backend, store: Store
) -> None:
    fail_with(backend, store)
    mine = Driver(backend, store, threads=1)
    backend.ends = failing([InvalidInputError("no such model")] * 9, store)
    with pytest.raises(InvalidInputError):
        mine.drive()
    theirs = Driver(backend, store, threads=3)
    with pytest.raises(InvalidInputError):
        theirs.drive()
    with pytest.raises(ConflictError, match=r"place\.threads 3 → 1.*another driver works on this evolution"):
        mine.drive()


def test_a_cancelled_run_is_replaced_though_its_history_does_not_show_it(backend: Backend, store: Store) -> None:
    """The workflow shows it, as long as it is there."""
    run = backend.add_run(NAME, "RUNNING")
    backend.terminate(run)
    backend.report(run, "FAILED")
    backend.states[run["run_id"]] = ["FAILED"]
    run["state_history"] = [one for one in run["state_history"] if one["state"] != "CANCELING"]
    assert Driver(backend, store).drive() == ["runs"]


def test_a_version_that_was_deleted_is_a_change_and_a_run_of_unknown_origin_is_none(
    backend: Backend, store: Store, steps: Steps
) -> None:
    run = fail_with(backend, store, UnavailableError("away"))
    backend.versions[run["pipeline_version_reference"]["pipeline_version_id"]]["display_name"] = "renamed"
    backend.versions.pop(run["pipeline_version_reference"]["pipeline_version_id"])
    (found,) = steps.runs([GENERATION.name])
    assert found.outdated == "the pipeline's version was deleted"
    unknown = backend.add_run(NAME, "FAILED")["run_id"]
    assert [one.outdated for one in steps.runs([GENERATION.name]) if one.id == unknown] == [""]


def test_inputs_that_were_brought_are_the_same_inputs_and_others_are_not(store: Store) -> None:
    """A run of seeding names the copies in S3, this machine its files."""
    sources = store.url("sources")
    then = {"models": {"base": f"{sources}/models/base", "rank": 8}, "seed": 1}

    def words(**models: Any) -> str:
        now = {"models": {**then["models"], **models}, "seed": 1}  # type: ignore[dict-item]
        old, new = ({"config": keep(store, NAME, tree)} for tree in (then, now))
        return changed(Compiled(("p", "v"), old, ""), Compiled(("p", "v"), new, ""), lambda source: None, store)  # type: ignore[arg-type, return-value]

    assert words(base="/home/me/base") == ""
    assert words(base="s3://bucket/corrected") == f"models.base {sources}/models/base → s3://bucket/corrected"
    assert words(rank=16, experts={}) == "models.experts null → {}, models.rank 8 → 16"


def test_a_retry_by_hand_goes_on_with_what_was_compiled_then(backend: Backend, store: Store) -> None:
    run = fail_with(backend, store, UnavailableError("away"))
    driver = Driver(backend, store, threads=1)
    by_hand(driver)
    assert driver.drive() == [] and run["state"] == "SUCCEEDED"
