"""What a driver does next: every place of HEAD with every list of runs, and drivers killed between any two calls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import ConflictError, CycleQDError, UnavailableError
from cycleqd.run.conduct import Conductor
from cycleqd.run.decisions import Cancel, Done, Retry, Run, Standing, Start, Stop, Wait, decide
from cycleqd.run.steps import Step

SEEDING, FINALISING = Step("seeding"), Step("finalising")
STEPS = [SEEDING, Step("generation", 0, 1), Step("generation", 1, 1), FINALISING]
PLACES = [Standing(SEEDING, None), *itertools.starmap(Standing, zip(STEPS[1:], STEPS, strict=False))]
DUE = PLACES[2]  # generation 1, after generation 0
END = Standing(None, FINALISING)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIVE = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED")
STATES = (*LIVE, "CANCELING", "SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def run(step: Step, state: str, number: int = 0, **more: object) -> Run:
    made = Run(f"id-{step.name}-{number}", step.name, state, T0 + timedelta(seconds=number))
    return replace(made, **more)  # type: ignore[arg-type]


def ids(*runs: Run) -> frozenset[str]:
    return frozenset(one.id for one in runs)


BEFORE = run(DUE.before or SEEDING, "SUCCEEDED")


def due(state: str, number: int = 0) -> Run:
    return run(STEPS[2], state, number)


@pytest.mark.parametrize("place", PLACES)
def test_the_due_step_is_started_when_it_has_no_run(place: Standing) -> None:
    done = [run(place.before, "SUCCEEDED")] if place.before else []
    assert decide(place, done, frozenset()) == Start(place.due)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("place", PLACES)
def test_a_live_run_of_the_due_step_is_adopted(place: Standing, state: str) -> None:
    assert place.due is not None
    live = run(place.due, state)
    runs = [live, *([run(place.before, "SUCCEEDED")] if place.before else [])]
    assert decide(place, runs, frozenset()) == Wait(live)


def test_a_run_that_had_failed_is_retried_in_place_and_one_that_fails_now_stops_the_driver() -> None:
    failed = replace(due("FAILED"), reason="no GPU left.")
    assert decide(DUE, [BEFORE, failed], ids(failed)) == Retry(failed)
    stop = decide(DUE, [BEFORE, failed], frozenset())
    assert isinstance(stop, Stop)
    for words in (failed.id, "failed: no GPU left;", "cycleqd logs generation-000001", "cycleqd retry"):
        assert words in stop.sentence


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED"])
def test_a_run_that_had_been_cancelled_is_replaced_and_one_that_is_cancelled_now_stops_the_driver(state: str) -> None:
    gone = due(state)
    assert decide(DUE, [BEFORE, gone], ids(gone)) == Start(STEPS[2])
    stop = decide(DUE, [BEFORE, gone], frozenset())
    assert isinstance(stop, Stop) and "was cancelled" in stop.sentence


def test_nothing_starts_beside_a_run_that_is_still_ending() -> None:
    ending = due("CANCELING")
    assert decide(DUE, [BEFORE, ending], ids(ending)) == Wait(ending)
    live = due("RUNNING", 1)
    assert decide(DUE, [BEFORE, ending, live], ids(ending)) == Wait(live)


def test_of_two_live_runs_the_younger_is_ended_whoever_asks() -> None:
    older, younger = due("RUNNING", 1), due("PENDING", 2)
    for order in ([older, younger], [younger, older]):
        assert decide(DUE, [BEFORE, *order], frozenset()) == Cancel(younger)
    twin = replace(older, id="id-z")  # created in the same second: ids decide
    assert decide(DUE, [BEFORE, twin, older], frozenset()) == Cancel(twin)


def test_the_loss_that_is_seen_counts_more_than_the_twin_that_was_ended() -> None:
    failed, twin = due("FAILED", 1), due("CANCELED", 2)
    assert isinstance(decide(DUE, [BEFORE, failed, twin], ids(twin)), Stop)
    assert decide(DUE, [BEFORE, failed, twin], ids(failed, twin)) == Retry(failed)


def test_success_without_records_is_said_and_not_repeated() -> None:
    stop = decide(DUE, [BEFORE, due("SUCCEEDED"), due("FAILED", 1)], frozenset())
    assert isinstance(stop, Stop) and "its records are not in S3" in stop.sentence


def test_the_step_before_is_completed_first() -> None:
    """HEAD has moved, but logging and cleaning may not have ended."""
    before = STEPS[1]
    for live in LIVE:
        assert decide(DUE, [run(before, live)], frozenset()) == Wait(run(before, live))
    failed, gone = run(before, "FAILED"), run(before, "CANCELED")
    assert decide(DUE, [failed], ids(failed)) == Retry(failed)
    assert isinstance(decide(DUE, [failed], frozenset()), Stop)
    assert decide(DUE, [gone], ids(gone)) == Start(before)
    assert decide(DUE, [], frozenset()) == Start(before)
    assert decide(DUE, [gone, run(before, "SUCCEEDED", 1)], frozenset()) == Start(STEPS[2])


def test_a_run_of_several_generations_is_not_the_one_before_itself() -> None:
    long = Step("generation", 0, 10)
    standing = Standing(long, long)
    assert decide(standing, [], frozenset()) == Start(long)
    failed = run(long, "FAILED")
    assert decide(standing, [failed], ids(failed)) == Retry(failed)


def test_when_all_records_are_there_the_last_run_is_only_seen_to_its_end() -> None:
    live, failed = run(FINALISING, "RUNNING"), run(FINALISING, "FAILED")
    assert decide(END, [live], frozenset()) == Wait(live)
    assert decide(END, [failed], ids(failed)) == Retry(failed)
    assert isinstance(decide(END, [failed], frozenset()), Stop)
    for runs in ([], [run(FINALISING, "SUCCEEDED")], [run(FINALISING, "CANCELED")]):
        assert decide(END, runs, ids(*runs)) == Done()


def test_a_live_run_of_the_schedule_is_waited_for_and_its_others_are_nobodys() -> None:
    clock = Run("id-s", "golden-schedule-1", "RUNNING", T0, scheduled=True)
    assert decide(DUE, [BEFORE, clock, due("FAILED")], frozenset()) == Wait(clock)
    lost = replace(clock, state="FAILED", name=STEPS[2].name)
    assert decide(DUE, [BEFORE, lost], frozenset()) == Start(STEPS[2])


def test_every_list_of_two_runs_keeps_the_laws() -> None:
    for place in [*PLACES, END]:
        names = [step for step in (place.before, place.due) if step is not None]
        for first, second in itertools.product(itertools.product(names, STATES), repeat=2):
            runs = [run(*first, 1), run(*second, 2)]
            for known in (frozenset[str](), ids(runs[0]), ids(*runs)):
                action = decide(place, runs, known)
                assert action == decide(place, runs[::-1], known), "the order of the list does not matter"
                _keeps_the_laws(action, runs, known)


def _keeps_the_laws(action: object, runs: list[Run], known: frozenset[str]) -> None:
    if isinstance(action, Start):
        same = [one for one in runs if one.name == action.step.name]
        assert all(one.state in ("CANCELED", "SKIPPED") and one.id in known for one in same)
    if isinstance(action, Retry):
        assert action.run.state == "FAILED" and action.run.id in known
        assert not any(one.live for one in runs if one.name == action.run.name)
    if isinstance(action, Cancel):
        assert action.run.live
        assert any(one.live and one.created_at < action.run.created_at for one in runs if one.name == action.run.name)
    if isinstance(action, Wait):
        assert action.run.live or action.run.state == "CANCELING"


class Killed(BaseException):
    """The driver's process dies."""


class World:
    """S3 and a cluster. Before and after every call of a driver chance may kill it, cut the line, or let time pass."""

    def __init__(self, chance: random.Random, steps: int = 4) -> None:
        self.chance = chance
        self.steps = [SEEDING, *(Step("generation", n, 1) for n in range(steps - 2)), FINALISING]
        self.head = 0
        self.made: list[Run] = []
        self.trouble = 60  # troubles left: in the end the world is calm, and the evolution must be complete
        self.second: Conductor | None = None

    def standing(self) -> Standing:
        self.happen()
        due = self.steps[self.head] if self.head < len(self.steps) else None
        return Standing(due, self.steps[self.head - 1] if self.head else None)

    def runs(self, names: Iterable[str]) -> list[Run]:
        self.happen()
        wanted = set(names)
        return [one for one in self.made if one.name in wanted]

    def start(self, step: Step) -> Run:
        self.happen()
        assert not any(one.name == step.name and one.state == "SUCCEEDED" for one in self.made), "started after success"
        self.made.append(run(step, "PENDING", len(self.made)))
        self.happen(still=True)
        return self.made[-1]

    def wait(self, one: Run) -> None:
        while self.of(one).state not in ("SUCCEEDED", "FAILED", "CANCELED"):
            self.happen()
            self.pass_time()

    def retry(self, one: Run) -> None:
        self.happen()
        if self.of(one).state == "FAILED":
            self.set(one, "RUNNING")
        self.happen()

    def cancel(self, one: Run) -> None:
        self.happen()
        if self.of(one).live:
            self.set(one, "CANCELING")
        self.happen()

    def happen(self, still: bool = False) -> None:
        """Trouble. `still`: no time passes, as between the making of a run and the answer."""
        while not still and self.chance.random() < 0.4:
            self.pass_time()
        if self.trouble and self.chance.random() < 0.15:
            self.trouble -= 1
            raise self.chance.choice([Killed(), UnavailableError("the line is cut")])

    def pass_time(self) -> None:
        """A run goes on by a step; its success moves HEAD if that was not done, before its state says so."""
        moving = [one for one in self.made if one.live or one.state == "CANCELING"]
        if not moving:
            return
        one = self.chance.choice(moving)
        place = [step.name for step in self.steps].index(one.name)
        if one.state == "CANCELING":
            self.set(one, "CANCELED")
        elif one.state == "PENDING":
            self.set(one, "RUNNING")
        elif place == self.head and self.chance.random() < 0.5:
            self.head += 1  # the work is done, cleaning is not
        elif place < self.head:
            self.set(one, "SUCCEEDED")
        elif self.trouble and self.chance.random() < 0.2:
            self.trouble -= 1
            self.set(one, "FAILED")

    def of(self, one: Run) -> Run:
        return next(found for found in self.made if found.id == one.id)

    def set(self, one: Run, state: str) -> None:
        index = [found.id for found in self.made].index(one.id)
        self.made[index] = replace(self.made[index], state=state)

    def live(self, name: str) -> list[Run]:
        return [one for one in self.made if one.name == name and one.live]


def drive_to_the_end(world: World) -> int:
    """Start drivers until one says that all is done; how many it took."""
    for count in itertools.count(1):
        try:
            Conductor(world, world.standing, sleep=lambda seconds: None).drive()
            return count
        except (Killed, ConflictError, UnavailableError):
            assert count < 1000, "no end"
    raise AssertionError


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_a_driver_that_is_killed_between_any_two_calls_starts_every_step_once(seed: int) -> None:
    """One driver at a time: of each step there is one run, however often drivers die; it is retried when it fails."""
    world = World(random.Random(seed))
    drive_to_the_end(world)
    assert world.head == len(world.steps)
    assert [one.name for one in world.made] == [step.name for step in world.steps]
    assert {one.state for one in world.made} == {"SUCCEEDED"}


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_an_undisturbed_driver_never_stops(seed: int) -> None:
    """HEAD moves, and runs end, between its looks at the one and at the other."""
    world = World(random.Random(seed))
    world.trouble = 0
    assert drive_to_the_end(world) == 1


class Script(World):
    """No chance: seeding's run is in these states, one a look; a retry may go unanswered."""

    def __init__(self, *states: str, answered: bool = True) -> None:
        super().__init__(random.Random(0))
        self.states, self.answered, self.asked = list(states), answered, 0
        self.made = [run(SEEDING, self.states.pop(0))]

    def happen(self, still: bool = False) -> None:
        """Nothing."""

    def runs(self, names: Iterable[str]) -> list[Run]:
        found = super().runs(names)
        if self.states:
            self.set(self.made[0], self.states.pop(0))
        return found

    def wait(self, one: Run) -> None:
        """The next look will tell."""

    def retry(self, one: Run) -> None:
        self.asked += 1
        if not self.answered:
            raise UnavailableError("nobody answers")


@pytest.mark.parametrize("answered", [True, False])
def test_a_run_is_retried_once_a_driver(answered: bool) -> None:
    world = Script("FAILED", "RUNNING", "FAILED", answered=answered)
    with pytest.raises(ConflictError, match="failed"):
        Conductor(world, world.standing, sleep=lambda seconds: None).drive()
    assert world.asked == 1
    quick = Script("FAILED", "FAILED")  # between two looks it worked, and failed again
    with pytest.raises(ConflictError, match="failed"):
        Conductor(quick, quick.standing).drive()
    assert quick.asked == 1


@pytest.mark.parametrize(("state", "word"), [("FAILED", "failed"), ("CANCELED", "was cancelled")])
def test_a_run_that_is_lost_under_a_drivers_eyes_stops_it(state: str, word: str) -> None:
    world = Script("RUNNING", state)
    with pytest.raises(ConflictError, match=word):
        Conductor(world, world.standing).drive()
    assert world.asked == 0 and len(world.made) == 1


def test_the_twin_that_a_driver_ended_is_no_loss() -> None:
    world = Script("RUNNING", "RUNNING", "CANCELED")
    world.made.append(run(SEEDING, "PENDING", 1))
    conductor = Conductor(world, world.standing)
    conductor.act(conductor.next()[0])
    assert world.made[1].state == "CANCELING"
    world.set(world.made[1], "CANCELED")
    with pytest.raises(ConflictError, match=world.made[0].id):
        conductor.drive()


class Both(World):
    """Two drivers: whenever one makes a call, the other may first do whatever it wants to do next."""

    depth = 0

    def happen(self, still: bool = False) -> None:
        if self.second is not None and not self.depth and self.chance.random() < 0.3:
            self.depth += 1
            try:
                action, _ = self.second.next()
                if not isinstance(action, Wait | Done):
                    self.second.act(action)
            except (Killed, CycleQDError):
                self.second = Conductor(self, self.standing)
            finally:
                self.depth -= 1
        super().happen(still)

    def start(self, step: Step) -> Run:
        """A rival may have begun the step, and even ended it, since this driver looked: the work is found done then."""
        self.happen()
        self.made.append(run(step, "PENDING", len(self.made)))
        return self.made[-1]


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_two_drivers_leave_no_two_runs_of_a_step_alive(seed: int) -> None:
    world = Both(random.Random(seed))
    world.second = Conductor(world, world.standing)
    drive_to_the_end(world)
    world.second, world.trouble = None, 0
    for _ in range(200):
        world.pass_time()
    drive_to_the_end(world)
    assert world.head == len(world.steps)
    for step in world.steps:
        assert not world.live(step.name)
        same = [one.state for one in world.made if one.name == step.name]
        assert "SUCCEEDED" in same
        assert same.count("SUCCEEDED") + same.count("CANCELED") + same.count("FAILED") == len(same)


def test_two_drivers_that_start_at_once_end_up_with_one_run() -> None:
    """Both looked before either started."""

    class Calm(World):
        def happen(self, still: bool = False) -> None:
            """Nothing."""

    world = Calm(random.Random(0))
    pair = [Conductor(world, world.standing), Conductor(world, world.standing)]
    for conductor, (action, _) in [(conductor, conductor.next()) for conductor in pair]:
        conductor.act(action)
    assert len(world.live("seeding")) == 2
    for conductor in pair * 2:
        action, _ = conductor.next()
        if isinstance(action, Cancel):
            conductor.act(action)
    assert [one.id for one in world.live("seeding")] == [world.made[0].id]


def test_an_outage_that_lasts_stops_the_driver() -> None:
    class Silent(World):
        def runs(self, names: Iterable[str]) -> list[Run]:
            raise UnavailableError("nobody answers")

    warnings: list[str] = []
    world, pauses = Silent(random.Random(0)), list[float]()
    world.trouble = 0
    with pytest.raises(UnavailableError, match="nobody answers"):
        Conductor(world, world.standing, warned=warnings.append, sleep=pauses.append, outage=60).drive()
    assert pauses == [1, 2, 4, 8, 16, 30]
    assert warnings[0] == "nobody answers; trying again in 1 s"
