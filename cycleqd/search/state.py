"""The state of an evolution after n generations: the content of the snapshot archives/NNNNNN.json. All pure.

All K archives are kept for every algorithm. What does not select from them lets them record, which gives every
algorithm the same measures and the same final model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Self

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.search.algorithms import algorithm
from cycleqd.search.archive import Archive
from cycleqd.search.config import Config
from cycleqd.search.grid import Axis, behaviour, fix_axes
from cycleqd.search.operators.final import Recipe
from cycleqd.search.records import JSON, Evaluated, ModelRef, Plan, Scored, Scores
from cycleqd.search.records import average as average

SEEDING = -1
"""The generation of the experts in the history."""


@dataclass(frozen=True)
class State:
    """Snapshot n: the state after n generations (0: after seeding).

    Attributes:
        tasks: The K search tasks in the config's order.
        axes: Task → its axis, fixed at seeding.
        base: The base's scores; it is never offered.
        archives: One a task, in that order.
        population: What an algorithm without archives selects from.
        history: The experts, then every child, in the order of evaluation.
        rescored: Digests of the earlier editions of this snapshot, oldest first, with older scores.
        forgotten: Number of children that left the history, as their checkpoints were deleted before a rescoring.
        digest: sha256 (hex) of the stored bytes, which HEAD and plans name; "" for a state that was not stored.
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

    @property
    def bests(self) -> dict[str, Evaluated]:
        """The best model on each task among all evaluated ones, its archive's best elite; ties keep the earlier."""
        return {task: max(self.history, key=lambda line: line.scores[task]) for task in self.tasks}

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
        """The state of a snapshot's content; the archives' grids are made from its axes.

        Args:
            value: JSON as `to_json` makes it.
            digest: sha256 (hex) of the bytes that were read.
        """
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
    """Snapshot 0: bounds fixed from the experts, every expert offered to every archive.

    Args:
        config: Method and tasks of the evolution.
        base: The base model's scores.
        experts: The experts' scores, in the order in which they are offered.

    Raises:
        InvalidInputError: a score is missing, NaN or outside [0, 1], verdicts are missing, or every expert scores 0 on
            a task (unless evaluation.allow_flat_tasks), which then cannot guide the search.
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
    return algorithm(config).tell(_empty(config, base, checked), checked)


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


def planned(config: Config, state: State) -> Plan:
    """The next generation's plan, within the budget of evaluations.

    Args:
        config: Method and seed of the evolution.
        state: The current snapshot.

    Raises:
        ConflictError: the search is over.
    """
    if reason := should_stop(config, state):
        raise ConflictError(f"evolution '{config.name}' has nothing left to do: {reason}")
    return algorithm(config).ask(state, remaining(config, state))


def updated(config: Config, state: State, plan: Plan, scored: Sequence[Scored]) -> State:
    """The next snapshot: the plan's children were offered to all K archives.

    Args:
        config: Method of the evolution.
        state: The snapshot that the plan was made from.
        plan: The generation's plan.
        scored: The plan's children with their scores, in the plan's order.

    Raises:
        ConflictError: the plan was not made from this snapshot.
        IntegrityError: `scored` are not the plan's children.
        InvalidInputError: a score is missing, NaN or outside [0, 1].
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
    return algorithm(config).tell(state, checked)


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
    if not algorithm(config).needs_verdicts:
        return [Scored(model.model, model.scores) for model in scored]
    for model in scored:
        if model.verdicts is None or not set(tasks) <= set(model.verdicts):
            raise InvalidInputError(
                f"model '{model.model.id}' comes without verdicts on every task, which its method needs"
            )
    return [replace(model, verdicts={task: tuple((model.verdicts or {})[task]) for task in tasks}) for model in scored]


def rescored(config: Config, state: State, base: Scored, models: Sequence[Scored]) -> State:
    """Another edition of a snapshot: bounds, archives and population from new scores alone.

    Models are offered in the order of the history, in their own generations; children without new scores leave the
    history and are only counted. Raises as `seeded` does.

    Args:
        config: Method of the evolution.
        state: The edition before.
        base: The base with its new scores.
        models: Every expert, and the children that are to stay, with their new scores.
    """
    found = {model.model.id: model for model in models}
    made: dict[int, list[Scored]] = {}
    for line in state.children:
        if line.model.id in found:
            made.setdefault(line.generation, []).append(_checked(found[line.model.id], state.tasks))
    search = algorithm(config)
    again = seeded(config, base, [found[expert.model.id] for expert in state.experts])
    for generation in range(state.generation):
        again = search.tell(again, _with_verdicts(config, made.get(generation, []), state.tasks))
    forgotten = state.evaluations - len(again.children)
    return replace(again, rescored=(*state.rescored, state.digest), forgotten=forgotten)


def replayed(config: Config, state: State) -> Iterator[State]:
    """Every snapshot from 0 to this one, rebuilt from the history (populations without verdicts).

    Args:
        config: Method of the evolution.
        state: The last snapshot.
    """
    search = algorithm(config)
    yield (current := search.tell(_empty(config, state.base, state.experts), state.experts))
    made = {
        generation: [Scored(line.model, line.scores) for line in lines]
        for generation, lines in groupby(state.children, key=lambda line: line.generation)
    }
    for generation in range(state.generation):
        yield (current := search.tell(current, made.get(generation, [])))


def best_average(state: State) -> Evaluated:
    """The evaluated model with the best average; ties keep the earlier. It need not be an elite.

    Args:
        state: A snapshot.
    """
    return max(state.history, key=lambda line: average(line.scores))


def alive(config: Config, state: State) -> tuple[Evaluated, ...]:
    """The models whose checkpoints the evolution still needs, in the history's order; all others may be collected.

    What the search may select as a parent, and the best on each task, for the final model.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
    """
    parents = algorithm(config).pool(state)
    needed = {model.model.id for model in parents} | {line.model.id for line in state.bests.values()}
    return tuple(line for line in state.history if line.model.id in needed)


def best_living(config: Config, state: State) -> Evaluated:
    """The living model with the best average; ties keep the earlier. Its checkpoint exists.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
    """
    return max(alive(config, state), key=lambda line: average(line.scores))


def homes(state: State, model: str) -> tuple[str, ...]:
    """Quality tasks of the archives in which a model is an elite.

    Args:
        state: A snapshot.
        model: Model id.
    """
    return tuple(a.quality for a in state.archives if any(e.model.id == model for e in a.elites.values()))


def final_recipe(config: Config, state: State, aggregated: Scores | None = None) -> Recipe:
    """Models and coefficients β of the final model.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
        aggregated: Scores of the aggregate on the search split, where they decide.
    """
    return config.method.final.recipe(state, best_living(config, state), aggregated)


def remaining(config: Config, state: State) -> int | None:
    """Child evaluations left in the budget; None without one.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
    """
    budget = config.method.stop.evaluations
    return None if budget is None else max(budget - state.evaluations, 0)


def should_stop(config: Config, state: State) -> str | None:
    """Why the search is over, as a clause; None while it goes on.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
    """
    method = config.method
    if state.generation >= method.generations:
        return f"all {method.generations} generations are done"
    if remaining(config, state) == 0:
        return f"the budget of {method.stop.evaluations} evaluations is spent"
    if method.stop.patience is not None:
        stale = state.generation - 1 - best_average(state).generation
        if stale >= method.stop.patience:
            return f"no better average for {stale} generations"
    return None
