"""A real cluster on which workflows and pods are taken away: nothing waits for ever, and what tasks said is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cycleqd.storage import layout
from tests.cluster.evolution import Evolution, make, wait_for

pytestmark = pytest.mark.timeout(3 * 3600)


@pytest.fixture(scope="module")
def evolution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evolution]:
    """Tests go on from one another: seeding, then a generation each."""
    made = make(tmp_path_factory.mktemp("gone"), generations=3)
    yield made
    made.call("unschedule", "--now")
    made.call("cancel")


def test_a_run_whose_workflow_was_deleted_is_archived_and_replaced(evolution: Evolution) -> None:
    lost = evolution.json("submit")["run"]
    wait_for(lambda: evolution.state("seeding") == "RUNNING")
    evolution.clean_up(lost)
    (shown,) = evolution.runs()["seeding"]
    assert shown["gone"] and shown["state"] in ("RUNNING", "PENDING")
    again = evolution.json("submit")
    assert again["action"] == "started" and again["run"] != lost
    wait_for(lambda: evolution.state("seeding") == "SUCCEEDED")
    assert [run["run"] for run in evolution.runs()["seeding"]] == [again["run"]]


def test_a_run_goes_on_after_its_workflow_and_pods_are_gone_and_its_logs_are_kept(evolution: Evolution) -> None:
    """A task refuses; the morning after its input is there again, and its run is retried by hand."""
    checkpoint = layout.checkpoint("base")
    away = {key: evolution.store.get(key) for key in evolution.store.list(checkpoint) if key.endswith(".safetensors")}
    evolution.store.delete(away)
    run = evolution.json("submit")["run"]
    wait_for(lambda: evolution.state("generation-000000") == "FAILED")
    evolution.clean_up(run)
    said = evolution.call("logs", "generation-000000")
    assert said.startswith(f"run generation-000000 ({run}) failed: merge g000000-c00: ") and "safetensors" in said
    assert {log["task"] for log in evolution.json("logs", run, "--all")} >= {"select-parents", "merge"}
    for key, data in away.items():
        evolution.store.put(key, data)
    assert evolution.json("retry", run)["images"]
    wait_for(lambda: evolution.state("generation-000000") == "SUCCEEDED")
    assert evolution.snapshot() == 1 and [one["run"] for one in evolution.runs()["generation-000000"]] == [run]


def test_a_schedule_is_removed_when_its_run_in_flight_has_ended(evolution: Evolution) -> None:
    made = evolution.json("schedule", "--cron", "*/30 * * * * *")

    def begun() -> list[str]:
        runs = [run for named in evolution.runs().values() for run in named]
        return [run["run"] for run in runs if run["scheduled"] and run["state"] == "RUNNING"]

    wait_for(lambda: bool(begun()))
    (run,) = begun()
    assert evolution.json("unschedule")["removed"] == [made["schedule"]]
    runs = {one["run"]: one for named in evolution.runs().values() for one in named}
    assert runs[run]["state"] == "SUCCEEDED" and evolution.snapshot() == 2
    assert not any(one["gone"] for one in runs.values())


def test_a_schedule_is_removed_now_with_what_it_has_begun_and_drive_finishes_that(evolution: Evolution) -> None:
    evolution.json("schedule", "--cron", "*/30 * * * * *")
    wait_for(lambda: any(one["state"] == "RUNNING" for named in evolution.runs().values() for one in named))
    evolution.json("unschedule", "--now")
    assert not any(one["state"] in ("RUNNING", "CANCELING") for named in evolution.runs().values() for one in named)
    evolution.call("drive")
    assert evolution.json("submit")["action"] == "complete"
