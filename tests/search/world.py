"""A world small enough to compute by hand: a model is a vector of K skills, the base 0, expert k the k-th unit vector.

Crossover and SVD mutation act on the vectors as they would on task vectors; scores are those of 50 samples a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cycleqd.search import state
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config, parse
from cycleqd.search.records import Child, ModelRef, Scored, digest
from cycleqd.search.state import State

TASKS = ("code", "db", "os")


def config(method: Mapping[str, Any] | None = None, tasks: Sequence[str] = TASKS, **rest: Any) -> Config:
    """A valid configuration with the given method."""
    return parse(
        {
            "name": "world",
            "models": {"base": "base", "experts": {task: {"path": task, "task": task} for task in tasks}},
            "tasks": {task: {"class": "world:Task", "data": task} for task in tasks},
            "method": dict(method or {}),
            **rest,
        },
        "world",
    )


def model(name: str, *scores: float, sha256: str = "", tasks: Sequence[str] = TASKS) -> Scored:
    """A scored model; its digest is its name unless given."""
    return Scored(ModelRef(name, sha256 or name), dict(zip(tasks, scores, strict=True)))


class World:
    """Evaluates what an evolution plans."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tasks = config.search_tasks
        self.skills = {"base": np.zeros(len(self.tasks))}
        for index, task in enumerate(self.tasks):
            self.skills[f"expert-{task}"] = np.eye(len(self.tasks))[index]

    def scored(self, name: str) -> Scored:
        """A skill helps its own task with falling returns and hinders the others a little."""
        skill = self.skills[name]
        raw = 0.3 + 0.22 * skill * (3 - skill) - 0.08 * (skill.sum() - skill) ** 2
        hits = np.floor(np.clip(raw, 0, 1) * 50 + 0.5).astype(int)
        counts = {task: int(n) for task, n in zip(self.tasks, hits, strict=True)}
        scores = {task: n / 50 for task, n in counts.items()}
        verdicts = {task: tuple(i < n for i in range(50)) for task, n in counts.items()}
        ref = ModelRef(name, digest([round(float(s), 9) for s in skill]))
        return Scored(ref, scores, verdicts if algorithm(self.config).needs_verdicts else None)

    def born(self, child: Child) -> Scored:
        parents = np.array([self.skills[parent.id] for parent in child.parents])
        skill = np.array([share for _, share in child.shares]) @ parents
        if child.mutation["kind"] == "svd":
            rng = np.random.Generator(np.random.PCG64(child.mutation["seed"]))
            w = rng.uniform(0, child.mutation["w_max"], len(skill))
            skill = skill * (w + 1 if child.mutation["mode"] == "additive" else w)
        self.skills[child.id] = skill
        return self.scored(child.id)

    def seeded(self) -> State:
        return state.seeded(self.config, self.scored("base"), [self.scored(f"expert-{task}") for task in self.tasks])

    def step(self, before: State) -> State:
        plan = state.planned(self.config, before)
        return state.updated(self.config, before, plan, [self.born(child) for child in plan.children])

    def run(self) -> list[State]:
        """Every snapshot until the search stops."""
        states = [self.seeded()]
        while state.should_stop(self.config, states[-1]) is None:
            states.append(self.step(states[-1]))
        return states
