"""The state of an evolution after n generations: the content of the snapshot archives/NNNNNN.json. All pure.

All K archives are kept for every method. A fixed-axis search selects from one of them, NSGA-II and Lexicase from the
population; the others then only record, which gives every method the same measures and the same final model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Self

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.search import cycle, nsga2
from cycleqd.search.archive import Archive, union
from cycleqd.search.config import Config
from cycleqd.search.grid import Axis, behaviour, fix_axes
from cycleqd.search.records import JSON, ModelRef, Plan, Scored, Scores

SEEDING = -1
"""The generation of the experts in the history."""


def average(scores: Scores) -> float:
    """Mean over the search tasks."""
    return math.fsum(scores.values()) / len(scores)


@dataclass(frozen=True)
class Evaluated:
    """A line of the history: a model, its scores, and the generation that made it (SEEDING for an expert)."""

    generation: int
    model: ModelRef
    scores: Scores


@dataclass(frozen=True)
class State:
    """Snapshot n: the state after n generations (0: after seeding).

    tasks: the K search tasks in the config's order. axes: task → its axis, fixed at seeding. archives: one a task, in
    that order. population: what NSGA-II and Lexicase select from (empty otherwise). history: the experts, then every
    child, in the order of evaluation. The base is scored but never offered. rescored: digests of the earlier editions
    of this snapshot, the oldest first, where its models were scored anew. forgotten: children that are no longer in the
    history, as they were gone when the others were scored anew. digest: sha256 (hex) of the bytes that the state is
    stored as, which HEAD and plans name; "" for one that was not stored.
    """

    generation: int
    tasks: tuple[str, ...]
    axes: Mapping[str, Axis]
    base: Scored
    experts: tuple[Scored, ...]
    archives: tuple[Archive, ...]
    population: tuple[Scored, ...] = ()
    history: tuple[Evaluated, ...] = field(repr=False, default=())
    rescored: tuple[str, ...] = ()
    forgotten: int = 0
    digest: str = field(compare=False, default="")

    @property
    def children(self) -> tuple[Evaluated, ...]:
        """The history without the experts."""
        return self.history[len(self.experts) :]

    @property
    def evaluations(self) -> int:
        """How many children were evaluated: what a budget counts."""
        return len(self.children) + self.forgotten

    def to_json(self) -> JSON:
        """The snapshot's content. A line of `history` is [generation, id, digest, scores in the order of `tasks`]."""
        return {
            "generation": self.generation,
            "tasks": list(self.tasks),
            "grid": {task: axis.to_json() for task, axis in self.axes.items()},
            "base": self.base.to_json(),
            "experts": [expert.to_json() for expert in self.experts],
            "archives": [archive.to_json() for archive in self.archives],
            "population": [model.to_json() for model in self.population],
            "history": [
                [line.generation, line.model.id, line.model.digest, [line.scores[task] for task in self.tasks]]
                for line in self.history
            ],
            "rescored": list(self.rescored),
            "forgotten": self.forgotten,
        }

    @classmethod
    def from_json(cls, value: JSON, digest: str = "") -> Self:
        """The state of a snapshot's content; the archives' grids are made from its axes. digest: of what was read."""
        tasks = tuple(value["tasks"])
        axes = {task: Axis.from_json(value["grid"][task]) for task in tasks}
        return cls(
            generation=value["generation"],
            tasks=tasks,
            axes=axes,
            base=Scored.from_json(value["base"]),
            experts=tuple(Scored.from_json(expert) for expert in value["experts"]),
            archives=tuple(Archive.from_json(a, behaviour(axes, a["quality"])) for a in value["archives"]),
            population=tuple(Scored.from_json(model) for model in value["population"]),
            history=tuple(
                Evaluated(generation, ModelRef(name, sha256), dict(zip(tasks, scores, strict=True)))
                for generation, name, sha256, scores in value["history"]
            ),
            rescored=tuple(value["rescored"]),
            forgotten=value["forgotten"],
            digest=digest,
        )


def seeded(config: Config, base: Scored, experts: Sequence[Scored]) -> State:
    """Snapshot 0: bounds fixed from the experts, every expert offered to every archive, in the given order.

    Raises InvalidInputError for a score that is missing, NaN or outside [0, 1], for missing verdicts, and for a task on
    which every expert scores 0 (unless evaluation.allow_flat_tasks): such a task cannot guide the search.
    """
    tasks = config.search_tasks
    base = _checked(replace(base, verdicts=None), tasks)
    checked = _with_verdicts(config, [_checked(expert, tasks) for expert in experts], tasks)
    for task in tasks:
        if not config.evaluation.allow_flat_tasks and not any(expert.scores[task] for expert in checked):
            raise InvalidInputError(
                f"task '{task}': every expert scores 0, so it cannot guide the search; check the task and its expert, "
                "mark it report_only, or set evaluation.allow_flat_tasks"
            )
    return _advanced(config, _empty(config, base, checked), checked)


def _empty(config: Config, base: Scored, experts: Sequence[Scored]) -> State:
    """K empty archives with the experts' bounds: the state before the experts are offered."""
    tasks = config.search_tasks
    specialists = {f"expert-{name}": expert.task for name, expert in config.models.experts.items()}
    axes = fix_axes(config.method.grid, tasks, experts, specialists)
    return State(
        generation=SEEDING,
        tasks=tasks,
        axes=axes,
        base=base,
        experts=tuple(Scored(expert.model, expert.scores) for expert in experts),
        archives=tuple(Archive(task, behaviour(axes, task)) for task in tasks),
    )


def updated(config: Config, state: State, plan: Plan, scored: Sequence[Scored]) -> State:
    """The next snapshot: the plan's children, scored and in plan order, were offered to all K archives.

    Raises ConflictError when the plan was not made from this snapshot, IntegrityError when `scored` are not the plan's
    children, InvalidInputError for a score that is missing, NaN or outside [0, 1].
    """
    if plan.generation != state.generation or plan.snapshot not in (state.digest, *state.rescored):
        raise ConflictError(
            f"the plan of generation {plan.generation} (from snapshot {plan.snapshot[:12]}) does not belong to "
            f"snapshot {state.generation} ({state.digest[:12]}); plan again from the current HEAD"
        )
    expected, given = [child.id for child in plan.children], [model.model.id for model in scored]
    if expected != given:
        raise IntegrityError(f"generation {plan.generation}: scores of {given} were given for the children {expected}")
    checked = _with_verdicts(config, [_checked(model, state.tasks) for model in scored], state.tasks)
    return _advanced(config, state, checked)


def _advanced(config: Config, state: State, scored: Sequence[Scored]) -> State:
    """The insert rule, the survivors and the history, in one place."""
    forbid = config.method.copies.kind == "forbid"
    archives = list(state.archives)
    for model in scored:
        archives = [archive.offer(model, forbid) for archive in archives]
    population: tuple[Scored, ...] = ()
    if config.method.algorithm != "cycleqd":
        population = nsga2.survivors((*state.population, *scored), state.tasks, config.method.population)
    return replace(
        state,
        generation=state.generation + 1,
        archives=tuple(archives),
        population=population,
        history=state.history + tuple(Evaluated(state.generation, m.model, m.scores) for m in scored),
        rescored=(),
        digest="",
    )


def _checked(model: Scored, tasks: Sequence[str]) -> Scored:
    """The model with exactly the search tasks' scores, as floats; anything that is no fraction is refused."""
    scores = {}
    for task in tasks:
        if task not in model.scores:
            raise InvalidInputError(f"model '{model.model.id}' has no score on task '{task}'; evaluate it first")
        scores[task] = float(model.scores[task])
        if not 0.0 <= scores[task] <= 1.0:  # NaN fails too
            raise InvalidInputError(
                f"model '{model.model.id}' scores {scores[task]} on task '{task}'; a score is a fraction in [0, 1]"
            )
    return replace(model, scores=scores)


def _with_verdicts(config: Config, scored: Sequence[Scored], tasks: Sequence[str]) -> list[Scored]:
    """The models with exactly the search tasks' verdicts where selection needs them, with none elsewhere."""
    if not config.method.needs_verdicts:
        return [Scored(model.model, model.scores) for model in scored]
    for model in scored:
        if model.verdicts is None or not set(tasks) <= set(model.verdicts):
            raise InvalidInputError(
                f"model '{model.model.id}' comes without verdicts on every task, which lexicase_cases: samples needs"
            )
    return [replace(model, verdicts={task: tuple((model.verdicts or {})[task]) for task in tasks}) for model in scored]


def rescored(config: Config, state: State, base: Scored, models: Sequence[Scored]) -> State:
    """Another edition of a snapshot: bounds, archives and population from new scores alone.

    models: every expert, and the children that are to stay, with their new scores. They are offered in the order of the
    history, in their own generations; other children leave the history and are only counted. Raises as `seeded` does.
    """
    found = {model.model.id: model for model in models}
    made: dict[int, list[Scored]] = {}
    for line in state.children:
        if line.model.id in found:
            made.setdefault(line.generation, []).append(_checked(found[line.model.id], state.tasks))
    again = seeded(config, base, [found[expert.model.id] for expert in state.experts])
    for generation in range(state.generation):
        again = _advanced(config, again, _with_verdicts(config, made.get(generation, []), state.tasks))
    forgotten = state.evaluations - len(again.children)
    return replace(again, rescored=(*state.rescored, state.digest), forgotten=forgotten)


def replayed(config: Config, state: State) -> Iterator[State]:
    """Every snapshot from 0 to this one, rebuilt from the history (populations without verdicts)."""
    yield (current := _advanced(config, _empty(config, state.base, state.experts), state.experts))
    made = {
        generation: [Scored(line.model, line.scores) for line in lines]
        for generation, lines in groupby(state.children, key=lambda line: line.generation)
    }
    for generation in range(state.generation):
        yield (current := _advanced(config, current, made.get(generation, [])))


def bests(state: State) -> dict[str, Evaluated]:
    """The best model on each task among all evaluated ones; ties keep the earlier. It is that archive's best elite."""
    return {task: max(state.history, key=lambda line: line.scores[task]) for task in state.tasks}


def best_average(state: State) -> Evaluated:
    """The evaluated model with the best average; ties keep the earlier. It need not be an elite."""
    return max(state.history, key=lambda line: average(line.scores))


def alive(config: Config, state: State) -> tuple[Evaluated, ...]:
    """The models whose checkpoints the evolution still needs, in the history's order; all others may be collected.

    What the search may select as a parent (elites of the archives that it reads, or the population), and the best on
    each task, for the final model.
    """
    searched = cycle.searched(config.method.focus, state.tasks)
    parents = state.population or union(archive for archive in state.archives if archive.quality in searched)
    needed = {model.model.id for model in parents} | {line.model.id for line in bests(state).values()}
    return tuple(line for line in state.history if line.model.id in needed)


def best_living(config: Config, state: State) -> Evaluated:
    """The living model with the best average; ties keep the earlier. Its checkpoint is there."""
    return max(alive(config, state), key=lambda line: average(line.scores))


def homes(state: State, model: str) -> tuple[str, ...]:
    """Quality tasks of the archives in which the model with this id is an elite."""
    return tuple(a.quality for a in state.archives if any(e.model.id == model for e in a.elites.values()))


def final_recipe(config: Config, state: State, aggregated: Scores | None = None) -> list[tuple[ModelRef, float]]:
    """Models and coefficients β of the final model, Σ β = 1: the aggregate, or the living model with the best average.

    aggregated: the aggregate's scores on the search split, which `final: {kind: better}` decides by (a tie goes to the
    single model); the other kinds do not look at it. One model is written as such a sum, too: β = 1.
    """
    single = best_living(config, state)
    if config.method.final.kind == "better":
        assert aggregated is not None, "the better of two needs both scores"
        chosen = average(aggregated) <= average(single.scores)
    else:
        chosen = config.method.final.kind == "best"
    return [(single.model, 1.0)] if chosen else aggregate_recipe(config, state)


def aggregate_recipe(config: Config, state: State) -> list[tuple[ModelRef, float]]:
    """Models and coefficients β of the aggregate θ_base + Σ β τ (paper section 3.4); Σ β = 1.

    The K best elites, β = softmax of their quality (a fraction) over the temperature; a model that is best in two
    archives counts twice, its two shares added.
    """
    chosen = bests(state)
    top = max(line.scores[task] for task, line in chosen.items())
    weights = {
        task: math.exp((line.scores[task] - top) / config.method.final.temperature) for task, line in chosen.items()
    }
    total = math.fsum(weights.values())
    recipe: dict[ModelRef, float] = {}
    for task, line in chosen.items():
        recipe[line.model] = recipe.get(line.model, 0.0) + weights[task] / total
    return list(recipe.items())


def remaining(config: Config, state: State) -> int | None:
    """Child evaluations left in the budget; None without one."""
    budget = config.method.stop.evaluations
    return None if budget is None else max(budget - state.evaluations, 0)


def should_stop(config: Config, state: State) -> str | None:
    """Why the search is over, as a clause; None while it goes on."""
    method = config.method
    if state.generation >= method.generations:
        return f"all {method.generations} generations are done"
    if remaining(config, state) == 0:
        return f"the budget of {method.stop.evaluations} evaluations is spent"
    stale = state.generation - 1 - best_average(state).generation
    if method.stop.patience is not None and stale >= method.stop.patience:
        return f"no better average for {stale} generations"
    return None
