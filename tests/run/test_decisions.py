"""What a driver does next: every place of HEAD with every list of runs, and drivers killed between any two calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cycleqd.errors import ConflictError, CycleQDError, EvaluationError, InvalidInputError, UnavailableError
from cycleqd.run import decisions
from cycleqd.run.decisions import Action, Cancel, Done, Halt, Position, Replace, Retry, Run, Start, Wait
from cycleqd.run.kubeflow.repeats import Repeats
from cycleqd.run.steps import Step
from cycleqd.storage.failures import Failure

SEEDING, FINALISING = Step("seeding"), Step("finalising")
STEPS = [SEEDING, Step("generation", 0, 1), Step("generation", 1, 1), FINALISING]
PLACES = [Position(SEEDING, None), *itertools.starmap(Position, zip(STEPS[1:], STEPS, strict=False))]
DUE = PLACES[2]  # generation 1, after generation 0
END = Position(None, FINALISING)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIVE = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED")
STATES = (*LIVE, "CANCELING", "SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
RETRIES = 2


def decide(position: Position, runs: Iterable[Run], ended_before: frozenset[str] = frozenset()) -> Action:
    return decisions.decide(position, runs, ended_before, RETRIES)


def failure(kind: type[CycleQDError]) -> Failure:
    return Failure("merge", ("g000001-c00",), kind.__name__, kind.exit_code, "it is wrong.", "id", "pod", 0)


def run(step: Step, state: str, number: int = 0, **more: object) -> Run:
    made = Run(f"id-{step.name}-{number}", step.name, state, T0 + timedelta(seconds=number))
    return replace(made, **more)  # type: ignore[arg-type]


def ids(*runs: Run) -> frozenset[str]:
    return frozenset(one.id for one in runs)


BEFORE = run(DUE.before or SEEDING, "SUCCEEDED")


def due(state: str, number: int = 0) -> Run:
    return run(STEPS[2], state, number)


@pytest.mark.parametrize("place", PLACES)
def test_the_due_step_is_started_when_it_has_no_run(place: Position) -> None:
    done = [run(place.before, "SUCCEEDED")] if place.before else []
    assert decide(place, done) == Start(place.due)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("place", PLACES)
def test_a_live_run_of_the_due_step_is_adopted(place: Position, state: str) -> None:
    assert place.due is not None
    live = run(place.due, state)
    runs = [live, *([run(place.before, "SUCCEEDED")] if place.before else [])]
    assert decide(place, runs) == Wait(live)


@pytest.mark.parametrize(("retries", "pause"), [(0, 30.0), (1, 60.0)])
def test_a_failed_run_is_repeated_in_place_after_a_growing_pause(retries: int, pause: float) -> None:
    """Whoever saw it fail, and whether its task could say why."""
    failed = replace(due("FAILED"), retries=retries)
    for one in (failed, replace(failed, failure=failure(UnavailableError)), replace(failed, claimed=True)):
        for known in (ids(), ids(one)):
            assert decide(DUE, [BEFORE, one], known) == Retry(one, pause)


def test_pauses_are_bounded() -> None:
    failed = replace(due("FAILED"), retries=40)
    assert decisions.decide(DUE, [BEFORE, failed], ids(), 50) == Retry(failed, 600)


def test_a_run_that_was_repeated_often_enough_stops_the_driver() -> None:
    failed = replace(due("FAILED"), reason="no GPU left.", retries=RETRIES)
    for known in (ids(), ids(failed)):
        stop = decide(DUE, [BEFORE, failed], known)
        assert isinstance(stop, Halt) and stop.kind == "ConflictError"
        for words in (failed.id, "failed 3 times: no GPU left;", "cycleqd logs generation-000001", "cycleqd retry"):
            assert words in stop.sentence
    told = decide(DUE, [BEFORE, replace(failed, failure=failure(UnavailableError))])
    assert isinstance(told, Halt) and "failed 3 times: merge g000001-c00: it is wrong; read" in told.sentence
    once = decisions.decide(DUE, [BEFORE, due("FAILED")], ids(), 0)
    assert isinstance(once, Halt) and f"({due('FAILED').id}) failed; read" in once.sentence


@pytest.mark.parametrize("kind", [InvalidInputError, ConflictError, EvaluationError])
def test_a_refusal_stops_the_driver_at_once_with_the_tasks_sentence(kind: type[CycleQDError]) -> None:
    failed = replace(due("FAILED"), failure=failure(kind))
    stop = decide(DUE, [BEFORE, failed])
    assert isinstance(stop, Halt) and stop.kind == kind.__name__
    assert "merge g000001-c00: it is wrong; correct that" in stop.sentence
    assert "cycleqd retry generation-000001" in stop.sentence


def test_a_stuck_run_is_replaced_and_one_that_works_again_is_not() -> None:
    for state in (*LIVE, "CANCELING"):
        stuck = replace(due(state), stuck=True)
        assert decide(DUE, [BEFORE, stuck]) == Replace(stuck)
        assert decide(DUE, [BEFORE, stuck, due("RUNNING", 1)]) == Replace(stuck)
    again = replace(due("RUNNING"), retried=True, retries=1)
    assert decide(DUE, [BEFORE, again]) == Wait(again)
    clock = Run("id-s", "golden-schedule-1", "RUNNING", T0, scheduled=True, stuck=True)
    assert decide(DUE, [BEFORE, clock]) == Replace(clock)
    before = replace(run(STEPS[1], "RUNNING"), stuck=True)
    assert decide(DUE, [before]) == Replace(before)


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED"])
def test_a_run_that_had_been_cancelled_is_replaced_and_one_that_is_cancelled_now_stops_the_driver(state: str) -> None:
    gone = due(state)
    assert decide(DUE, [BEFORE, gone], ids(gone)) == Start(STEPS[2])
    stop = decide(DUE, [BEFORE, gone])
    assert isinstance(stop, Halt) and "was cancelled" in stop.sentence


def test_nothing_starts_beside_a_run_that_is_still_ending() -> None:
    ending = due("CANCELING")
    assert decide(DUE, [BEFORE, ending], ids(ending)) == Wait(ending)
    live = due("RUNNING", 1)
    assert decide(DUE, [BEFORE, ending, live], ids(ending)) == Wait(live)


def test_of_two_live_runs_the_younger_is_ended_whoever_asks() -> None:
    older, younger = due("RUNNING", 1), due("PENDING", 2)
    for order in ([older, younger], [younger, older]):
        assert decide(DUE, [BEFORE, *order]) == Cancel(younger)
    twin = replace(older, id="id-z")  # created in the same second: ids decide
    assert decide(DUE, [BEFORE, twin, older]) == Cancel(twin)


def test_the_failure_counts_more_than_the_twin_that_was_ended() -> None:
    failed, twin = due("FAILED", 1), due("CANCELED", 2)
    for known in (ids(), ids(twin), ids(failed, twin)):
        assert decide(DUE, [BEFORE, failed, twin], known) == Retry(failed, 30)


def test_success_without_records_is_said_and_not_repeated() -> None:
    stop = decide(DUE, [BEFORE, due("SUCCEEDED"), due("FAILED", 1)])
    assert isinstance(stop, Halt) and "its records are not in S3" in stop.sentence


def test_the_step_before_is_completed_first() -> None:
    """HEAD has moved, but logging and cleaning may not have ended."""
    before = STEPS[1]
    for live in LIVE:
        assert decide(DUE, [run(before, live)]) == Wait(run(before, live))
    failed, gone = run(before, "FAILED"), run(before, "CANCELED")
    assert decide(DUE, [failed]) == Retry(failed, 30)
    assert isinstance(decide(DUE, [replace(failed, retries=RETRIES)]), Halt)
    assert decide(DUE, [gone], ids(gone)) == Start(before)
    assert decide(DUE, []) == Start(before)
    assert decide(DUE, [gone, run(before, "SUCCEEDED", 1)]) == Start(STEPS[2])


def test_a_run_of_several_generations_is_not_the_one_before_itself() -> None:
    long = Step("generation", 0, 10)
    position = Position(long, long)
    assert decide(position, []) == Start(long)
    failed = run(long, "FAILED")
    assert decide(position, [failed]) == Retry(failed, 30)


def test_when_all_records_are_there_the_last_run_is_only_seen_to_its_end() -> None:
    live, failed = run(FINALISING, "RUNNING"), run(FINALISING, "FAILED")
    assert decide(END, [live]) == Wait(live)
    assert decide(END, [failed]) == Retry(failed, 30)
    assert isinstance(decide(END, [replace(failed, retries=RETRIES)]), Halt)
    for runs in ([], [run(FINALISING, "SUCCEEDED")], [run(FINALISING, "CANCELED")]):
        assert decide(END, runs, ids(*runs)) == Done()


def test_a_live_run_of_the_schedule_is_waited_for_and_its_others_are_nobodys() -> None:
    clock = Run("id-s", "golden-schedule-1", "RUNNING", T0, scheduled=True)
    assert decide(DUE, [BEFORE, clock, due("FAILED")]) == Wait(clock)
    lost = replace(clock, state="FAILED", name=STEPS[2].name)
    assert decide(DUE, [BEFORE, lost]) == Start(STEPS[2])


def variants(step: Step, state: str, number: int) -> list[Run]:
    """A run in a state, with all that can be known of it there."""
    plain = run(step, state, number)
    if state == "FAILED":
        worn = [replace(plain, retries=RETRIES), replace(plain, failure=failure(InvalidInputError))]
        return [plain, replace(plain, retries=1, claimed=True, failure=failure(UnavailableError)), *worn]
    return [plain, replace(plain, stuck=True)] if state in ("RUNNING", "CANCELING") else [plain]


def test_every_list_of_two_runs_keeps_the_laws() -> None:
    for place in [*PLACES, END]:
        names = [step for step in (place.before, place.due) if step is not None]
        firsts = [one for step in names for state in STATES for one in variants(step, state, 1)]
        seconds = [one for step in names for state in STATES for one in variants(step, state, 2)]
        for first, second in itertools.product(firsts, seconds):
            runs = [first, second]
            for known in (ids(), ids(first), ids(*runs)):
                action = decide(place, runs, known)
                assert action == decide(place, runs[::-1], known), "the order of the list does not matter"
                _keeps_the_laws(action, runs, known)


def _keeps_the_laws(action: object, runs: list[Run], known: frozenset[str]) -> None:
    if isinstance(action, Start):
        same = [one for one in runs if one.name == action.step.name]
        assert all(one.state in ("CANCELED", "SKIPPED") and one.id in known for one in same)
    if isinstance(action, Retry):
        assert action.run.state == "FAILED" and action.run.retries < RETRIES
        assert action.run.failure is None or not action.run.failure.refusal
        assert not any(one.live for one in runs if one.name == action.run.name)
    if isinstance(action, Cancel):
        assert action.run.live
        assert any(one.live and one.created_at < action.run.created_at for one in runs if one.name == action.run.name)
    if isinstance(action, Replace):
        assert action.run.stuck
    if isinstance(action, Wait):
        assert (action.run.live or action.run.state == "CANCELING") and not action.run.stuck


def test_a_claimed_failure_is_counted_once_whoever_acts_on_it() -> None:
    first, nothing = replace(due("FAILED"), ended="12:00"), Repeats()
    assert nothing.applied_to(first) == first
    claim = nothing.claimed(first)
    again = claim.applied_to(first)
    assert (again.retries, again.claimed) == (0, True), "whoever claimed it may have died before the call"
    working = claim.applied_to(replace(first, state="RUNNING", ended=""))
    assert (working.retries, working.retried) == (1, True)
    second = claim.applied_to(replace(first, ended="12:10"))
    assert (second.retries, second.claimed) == (1, False)
    third = claim.claimed(second).applied_to(replace(first, ended="12:20"))
    assert third.retries == 2 and isinstance(decide(DUE, [BEFORE, third]), Halt)


def test_a_run_that_takes_the_place_of_a_stuck_one_has_what_that_had_left_and_any_other_has_all() -> None:
    record = Repeats("id-stuck", 2, "12:00")
    assert record.applied_to(due("FAILED")).retries == 0
    handed_on = replace(record, replaced=True)
    failed, working = handed_on.applied_to(due("FAILED")), handed_on.applied_to(due("RUNNING"))
    assert failed.retries == 2 and not working.retried, "a first run may wait for a quota without a pod"
    assert handed_on.claimed(replace(failed, ended="12:30")) == Repeats(failed.id, 3, "12:30")
