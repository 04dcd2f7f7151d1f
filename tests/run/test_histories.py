"""Drivers through random histories: killed or cut off before and after every call, alone and in pairs, while runs fail,
refuse, and hang once they are retried. What drivers have recorded is kept by the real ledger."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import ConflictError, CycleQDError, EvaluationError, UnavailableError
from cycleqd.run.decisions import Action, Cancel, Done, Retry, Run, Start, Wait
from cycleqd.run.driver import Driver
from cycleqd.storage import run_layout
from tests.run.history import FINALISING, SEEDING, T0, Hands, Killed, World

RETRIES = 2


def driving(world: World, **more: Any) -> Driver:
    """A new driver's."""
    return Driver(Hands(world), world.position, RETRIES, **{"sleep": lambda seconds: world.pass_time(), **more})


def drive_to_the_end(world: World, people: bool = True) -> int:
    """Start drivers until one says that all is done; how many it took. People set right what drivers stop at."""
    for count in itertools.count(1):
        try:
            driving(world).drive()
            return count
        except (Killed, UnavailableError):
            pass
        except CycleQDError:
            if people:
                world.person()
        assert count < 1000, "no end"
    raise AssertionError


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_drivers_that_die_between_any_two_calls_end_every_step_and_repeat_none_too_often(seed: int) -> None:
    """One at a time. A step has one run, and one more for each that hung; together they repeat it twice at most."""
    world = World(random.Random(seed))
    drive_to_the_end(world)
    assert world.head == len(world.steps)
    names = [step.name for step in world.steps]
    if any(one.name == "finalising" and one.id in world.archived for one in world.made):
        names.pop()  # it hung when all was done already: nothing is worth a new run
    assert [one.name for one in world.visible() if one.name in names] == names
    assert {one.state for one in world.visible()} == {"SUCCEEDED"}
    assert set(world.archived) <= world.hanging, "only what would never have moved again is given up"
    assert all(count <= RETRIES for count in world.repeated.values()), world.repeated


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_step_that_always_fails_ends_every_driver_after_its_share_however_many_there_are(seed: int) -> None:
    world = World(random.Random(seed))
    world.trouble, world.fails, world.refuses = 10**6, 1.0, 0.0
    stopped = 0
    for _ in range(200):
        try:
            driving(world).drive()
        except ConflictError as error:
            stopped += "cycleqd retry" in str(error)
        except (Killed, UnavailableError):
            continue
        if stopped == 3:
            break
    assert stopped == 3
    assert sum(world.repeated.values()) <= RETRIES * (world.head + 1)
    assert len([one for one in world.made if one.id not in world.hanging]) <= world.head + 1


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_what_was_refused_is_never_repeated(seed: int) -> None:
    world = World(random.Random(seed))
    world.trouble, world.fails, world.refuses = 10**6, 1.0, 1.0
    for _ in range(50):
        try:
            driving(world).drive()
        except EvaluationError as error:
            assert "it would not" in str(error)
            break
        except (Killed, UnavailableError):
            continue
    else:
        raise AssertionError("no driver stopped")
    assert world.repeated.total() == 0 and len(world.visible()) == len(world.made)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_an_undisturbed_driver_never_stops(seed: int) -> None:
    """HEAD moves, and runs end, between its looks at the one and at the other."""
    world = World(random.Random(seed))
    world.trouble = 0
    assert drive_to_the_end(world, people=False) == 1


class Calm(World):
    """No chance: time passes only where a test says so."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.trouble = 0
        self.made = [Run("id-seeding-0", "seeding", "RUNNING", T0)]

    def happen(self, still: bool = False) -> None:
        """Nothing."""


class Script(Calm):
    """Seeding's run is in these states, one a look."""

    def __init__(self, *states: str, refuses: float = 0.0) -> None:
        super().__init__()
        self.states, self.refuses = list(states), refuses

    def pass_time(self) -> None:
        if self.states:
            state = self.states.pop(0)
            self.fail(self.made[0]) if state == "FAILED" else self.set(self.made[0], state)


def test_a_driver_repeats_after_growing_pauses_says_so_and_stops() -> None:
    world, pauses, told = Script("FAILED", "FAILED", "FAILED", "FAILED"), list[float](), list[Action]()
    with pytest.raises(ConflictError, match=r"failed 3 times: evaluate: it would not; read .cycleqd logs seeding"):
        driving(world, sleep=pauses.append, announce=lambda action, position: told.append(action)).drive()
    assert pauses == [30, 60]
    assert [(one.run.retries, one.pause) for one in told if isinstance(one, Retry)] == [(0, 30), (1, 60)]
    assert world.repeated == {"seeding": 2} and len(world.made) == 1
    with pytest.raises(ConflictError, match="failed 3 times"):
        driving(world).drive()
    assert world.repeated == {"seeding": 2}, "another driver has no share of its own"


def test_a_refusal_ends_the_driver_with_its_error() -> None:
    world, pauses = Script("FAILED", refuses=1.0), list[float]()
    with pytest.raises(EvaluationError, match=r"evaluate: it would not; correct that.*cycleqd retry seeding"):
        driving(world, sleep=pauses.append).drive()
    assert pauses == [] and world.repeated.total() == 0


def test_what_somebody_else_retried_during_the_pause_is_left_alone() -> None:
    world = Script("FAILED", "CANCELED")

    def pause(seconds: float) -> None:
        world.again(world.made[0])

    with pytest.raises(ConflictError, match="was cancelled"):
        driving(world, sleep=pause).drive()
    assert world.repeated.total() == 0 and run_layout.repeats("seeding") not in world.objects


def test_a_run_that_is_cancelled_under_a_drivers_eyes_stops_it() -> None:
    world = Script("CANCELING", "CANCELED")
    with pytest.raises(ConflictError, match="was cancelled"):
        driving(world).drive()
    assert world.repeated.total() == 0 and len(world.made) == 1


def test_a_run_that_hangs_gives_way_to_a_new_one_that_has_what_it_had_left() -> None:
    """A driver retries it, it hangs, and the driver that replaces it dies before it starts another."""
    world = Calm()
    world.fail(world.made[0])
    world.objects.pop(run_layout.failure(world.made[0].id, "evaluate-1"))
    world.hangs, world.trouble = 1.0, 1
    first = driving(world)
    first.act(first.next()[0])
    world.trouble = 0
    assert world.made[0].state == "RUNNING" and world.hanging == {world.made[0].id}
    first.act(first.next()[0])
    first.act(first.next()[0])
    assert world.archived == [world.made[0].id]
    second = driving(world)
    action, _ = second.next()
    assert action == Start(SEEDING)
    fresh = second.act(action)
    assert fresh is not None and fresh.id != world.made[0].id
    world.refuses = 0.0
    world.fail(fresh)
    action, _ = second.next()
    assert isinstance(action, Retry) and (action.run.id, action.run.retries) == (fresh.id, 1)


def test_the_twin_that_a_driver_ended_is_no_loss() -> None:
    world = Calm()
    world.made.append(replace(world.made[0], id="id-twin", state="PENDING", created_at=T0 + timedelta(seconds=1)))
    driver = driving(world)
    driver.act(driver.next()[0])
    assert world.made[1].state == "CANCELING"
    world.set(world.made[1], "CANCELED")
    world.set(world.made[0], "CANCELED")
    with pytest.raises(ConflictError, match=world.made[0].id):
        driver.drive()


class Both(World):
    """Two drivers: whenever one makes a call, the other may first do whatever it wants to do next."""

    depth = 0
    rivals = True
    second: Driver | None = None

    def happen(self, still: bool = False) -> None:
        if self.second is not None and not self.depth and self.chance.random() < 0.3:
            self.depth += 1
            try:
                action, _ = self.second.next()
                if not isinstance(action, Wait | Done):
                    self.second.act(action)
            except (Killed, CycleQDError):
                self.second = driving(self)
            finally:
                self.depth -= 1
        super().happen(still)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_two_drivers_leave_no_two_runs_of_a_step_alive(seed: int) -> None:
    world = Both(random.Random(seed))
    world.second = driving(world)
    drive_to_the_end(world)
    world.second, world.trouble = None, 0
    for _ in range(200):
        world.pass_time()
    drive_to_the_end(world)
    assert world.head == len(world.steps)
    for step in world.steps:
        # one that hung after a twin had done its step is nobody's, and does nothing
        same = [one.state for one in world.visible() if one.name == step.name and one.id not in world.hanging]
        assert "SUCCEEDED" in same or (step == FINALISING and world.archived)
        assert same.count("SUCCEEDED") + same.count("CANCELED") + same.count("FAILED") == len(same)


def test_two_drivers_that_see_a_failure_at_once_repeat_it_once() -> None:
    """Both have looked and paused; the slower one finds the claim taken."""
    world = Calm()
    world.refuses = 0.0
    world.fail(world.made[0])
    pair = [driving(world), driving(world)]
    actions = [driver.next()[0] for driver in pair]
    assert actions[0] == actions[1] and isinstance(actions[0], Retry)
    pair[0].act(actions[0])
    world.fail(world.made[0])  # it has failed again before the other acts
    pair[1].act(actions[1])
    assert world.repeated == {"seeding": 1} and world.made[0].state == "FAILED"


def test_two_drivers_that_start_at_once_end_up_with_one_run() -> None:
    """Both looked before either started."""
    world = Calm()
    world.made = []
    pair = [driving(world), driving(world)]
    for driver, (action, _) in [(driver, driver.next()) for driver in pair]:
        driver.act(action)
    assert len(world.live("seeding")) == 2
    for driver in pair * 2:
        action, _ = driver.next()
        if isinstance(action, Cancel):
            driver.act(action)
    assert [one.id for one in world.live("seeding")] == [world.made[0].id]


def test_an_outage_that_lasts_stops_the_driver() -> None:
    class Silent(Hands):
        def runs(self, names: Iterable[str]) -> list[Run]:
            raise UnavailableError("nobody answers")

    warnings: list[str] = []
    world, pauses = Calm(), list[float]()
    silent = Driver(Silent(world), world.position, warned=warnings.append, sleep=pauses.append, outage=60)
    with pytest.raises(UnavailableError, match="nobody answers"):
        silent.drive()
    assert pauses == [1, 2, 4, 8, 16, 30]
    assert warnings[0] == "nobody answers; trying again in 1 s"
