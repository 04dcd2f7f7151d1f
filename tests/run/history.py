"""A world for drivers: S3 and a cluster in which runs fail, refuse, and hang once they are retried, by chance."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cycleqd.errors import EvaluationError, UnavailableError
from cycleqd.run.decisions import Position, Run
from cycleqd.run.kubeflow.repeats import Ledger
from cycleqd.run.steps import Step
from cycleqd.storage import run_layout
from cycleqd.storage.failures import Failure

SEEDING, FINALISING = Step("seeding"), Step("finalising")
T0 = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


class Killed(BaseException):
    """The driver's process dies."""


class World:
    """S3 and a cluster. Before and after every call of a driver chance may kill it, cut the line, or let time pass."""

    rivals = False

    def __init__(self, chance: random.Random, steps: int = 4) -> None:
        self.chance = chance
        self.steps = [SEEDING, *(Step("generation", n, 1) for n in range(steps - 2)), FINALISING]
        self.head = 0
        self.made: list[Run] = []
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.trouble = 60  # troubles left: in the end the world is calm, and the evolution must be complete
        self.fails = 0.2  # how often a run fails when it could go on, and what of it is refusals
        self.refuses = 0.2
        self.hangs = 0.3  # how often a retried run never moves again
        self.hanging: set[str] = set()
        self.archived: list[str] = []
        self.repeated: Counter[str] = Counter()
        self.clock = itertools.count()

    def position(self) -> Position:
        self.happen()
        due = self.steps[self.head] if self.head < len(self.steps) else None
        return Position(due, self.steps[self.head - 1] if self.head else None)

    def happen(self, still: bool = False) -> None:
        """Trouble. `still`: no time passes, as between the making of a run and the answer."""
        while not still and self.chance.random() < 0.4:
            self.pass_time()
        if self.trouble and self.chance.random() < 0.1:
            self.trouble -= 1
            raise self.chance.choice([Killed(), UnavailableError("the line is cut")])

    def pass_time(self) -> None:
        """A run goes on by a step; its success moves HEAD if that was not done, before its state says so."""
        moving = [one for one in self.made if (one.live or one.state == "CANCELING") and one.id not in self.hanging]
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
        elif self.trouble and self.chance.random() < self.fails:
            self.trouble -= 1
            self.fail(one)
        elif place < self.head:
            self.set(one, "SUCCEEDED")

    def fail(self, one: Run) -> None:
        kind = EvaluationError if self.chance.random() < self.refuses else UnavailableError
        record = Failure("evaluate", (), kind.__name__, kind.exit_code, "it would not", one.id, "pod", 0)
        self.objects[run_layout.failure(one.id, "evaluate-1")] = (json.dumps(asdict(record)).encode(), "")
        self.set(one, "FAILED")

    def again(self, one: Run) -> None:
        """Kubeflow's retry: only what has failed can be, and it may hang. Its task supersedes its record."""
        if self.of(one).state == "FAILED":
            self.set(one, "RUNNING")
            self.objects.pop(run_layout.failure(one.id, "evaluate-1"), None)
            if self.trouble and self.chance.random() < self.hangs:
                self.hanging.add(one.id)

    def person(self) -> None:
        """Somebody reads why drivers stopped, sets it right, and calls `cycleqd retry`."""
        for one in self.visible():
            if one.state == "FAILED":
                self.again(one)

    def visible(self) -> list[Run]:
        return [one for one in self.made if one.id not in self.archived]

    def of(self, one: Run) -> Run:
        return next(found for found in self.made if found.id == one.id)

    def set(self, one: Run, state: str) -> None:
        index = [found.id for found in self.made].index(one.id)
        ended = f"t{next(self.clock)}" if state in ENDED else ""
        self.made[index] = replace(self.made[index], state=state, ended=ended)

    def live(self, name: str) -> list[Run]:
        return [one for one in self.visible() if one.name == name and one.live]

    # What the ledger and the failures use of S3, every call of it a place to die at.

    def url(self, key: str) -> str:
        return key

    def find_with_etag(self, key: str) -> tuple[bytes, str] | None:
        self.happen()
        return self.objects.get(key)

    def find_json(self, key: str) -> Any:
        self.happen()
        return json.loads(self.objects[key][0]) if key in self.objects else None

    def list(self, prefix: str) -> dict[str, int]:
        self.happen()
        return {key: len(data) for key, (data, _) in self.objects.items() if key.startswith(f"{prefix}/")}

    def create(self, key: str, data: bytes) -> bool:
        return self._put(key, data, None)

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        return self._put(key, data, etag)

    def _put(self, key: str, data: bytes, etag: str | None) -> bool:
        self.happen()
        held = self.objects[key][1] if key in self.objects else None
        if held == etag:
            self.objects[key] = (data, f"e{next(self.clock)}")
        self.happen()
        return held == etag


class Hands:
    """What one driver's process knows of the world, and does to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = Ledger(world)  # type: ignore[arg-type]
        self.stuck: set[str] = set()

    def runs(self, names: Iterable[str]) -> list[Run]:
        self.world.happen()
        wanted = set(names)
        noted = self.ledger.with_repeats(one for one in self.world.visible() if one.name in wanted)
        return [replace(one, stuck=one.id in self.stuck and one.state not in ENDED) for one in noted]

    def start(self, step: Step) -> Run:
        world = self.world
        world.happen()
        number = len(world.made)
        made = Run(f"id-{step.name}-{number}", step.name, "PENDING", T0 + timedelta(seconds=number))
        assert not any(one.name == step.name and one.state == "SUCCEEDED" for one in world.made) or world.rivals
        world.made.append(made)
        world.happen(still=True)
        return made

    def wait(self, one: Run) -> None:
        while self.world.of(one).state not in ENDED:
            self.world.happen()
            self.world.pass_time()
            if one.id in self.world.hanging:  # and minutes later …
                self.stuck.add(one.id)
                return

    def retry(self, one: Run) -> None:
        if self.ledger.claim(one):
            self.world.happen()
            self.world.repeated[one.name] += self.world.of(one).state == "FAILED"
            self.world.again(one)
            self.world.happen()

    def cancel(self, one: Run) -> None:
        self.world.happen()
        if self.world.of(one).live:
            self.world.set(one, "CANCELING")
        self.world.happen()

    def replace(self, one: Run) -> None:
        if self.ledger.give_up(one):
            self.world.happen()
            if one.id not in self.world.archived:
                self.world.archived.append(one.id)
            self.world.happen()
