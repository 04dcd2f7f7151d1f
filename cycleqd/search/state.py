"""The state of an evolution after n generations: the content of the snapshot archives/NNNNNN.json. All pure.

All K archives are kept for every algorithm. What does not select from them lets them record, which gives every
algorithm the same measures and the same final model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from cycleqd.errors import ConflictError, IntegrityError, InvalidInputError
from cycleqd.search.algorithms import algorithm
from cycleqd.search.archive import Archive, Ties
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
        best: The model with the best average of all that were evaluated, which is kept from cleaning; in an evolution
            that began before format 3, of all that were kept when it was brought to it, and later ones.
        ties: Which of two models of equal quality is better.
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
    best: ModelRef | None = None
    ties: Ties = "average"
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
        """The best model on each task among all evaluated ones, its archive's best elite.

        Of equal ones that of the higher average (see `ties`), then the earlier.
        """

        def rank(line: Evaluated, task: str) -> tuple[float, float]:
            return line.scores[task], average(line.scores) if self.ties == "average" else 0.0

        return {task: max(self.history, key=lambda line: rank(line, task)) for task in self.tasks}

    def to_json(self) -> JSON:
        """The snapshot's content. A line of `history` is [generation, id, digest, scores in the order of `tasks`],
        and the origin where rules for copies need it.
        """
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
                + ([line.origin] if line.origin else [])
                for line in self.history
            ],
            "best": self.best.to_json() if self.best else None,
            "ties": self.ties,
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
                Evaluated(generation, ModelRef(name, sha256), dict(zip(tasks, scores, strict=True)), *origin)
                for generation, name, sha256, scores, *origin in value["history"]
            ),
            best=ModelRef.from_json(value["best"]) if value["best"] else None,
            ties=value["ties"],
            rescored=tuple(value["rescored"]),
            forgotten=value["forgotten"],
            digest=digest,
        )


def seeded(config: Config, base: Scored, experts: Sequence[Scored], ties: Ties = "average") -> State:
    """Snapshot 0: bounds fixed from the experts, every expert offered to every archive.

    Args:
        config: Method and tasks of the evolution.
        base: The base model's scores.
        experts: The experts' scores, in the order in which they are offered.
        ties: Which of two models of equal quality is better.

    Raises:
        InvalidInputError: a score is missing, NaN or outside [0, 1], verdicts are missing, or every expert scores 0 on
            a task (unless evaluation.allow_flat_tasks), which then cannot guide the search.
    """
    tasks = config.search_tasks
    base = validated(replace(base, verdicts=None), tasks)
    checked = with_verdicts(config, [validated(expert, tasks) for expert in experts], tasks)
    for task in tasks:
        if not config.evaluation.allow_flat_tasks and not any(expert.scores[task] for expert in checked):
            raise InvalidInputError(
                f"task '{task}': every expert scores 0, so it cannot guide the search; check the task and its expert,"
                " and start anew under another name, with the task report_only perhaps; or set"
                " evaluation.allow_flat_tasks: true and go on by `cycleqd extend`"
            )
    return algorithm(config).tell(empty(config, base, checked, ties), checked)


def empty(config: Config, base: Scored, experts: Sequence[Scored], ties: Ties) -> State:
    """K empty archives with the experts' bounds: the state before the experts are offered.

    Args:
        config: Method and tasks of the evolution.
        base: The base model's scores.
        experts: The experts' scores.
        ties: Which of two models of equal quality is better.
    """
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
        ties=ties,
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
    checked = with_verdicts(config, [validated(model, state.tasks) for model in scored], state.tasks)
    if config.method.copies.needs_origins:
        checked = [replace(model, origin=child.origin) for model, child in zip(checked, plan.children, strict=True)]
    return algorithm(config).tell(state, checked)


def validated(model: Scored, tasks: Sequence[str]) -> Scored:
    """The model with exactly the search tasks' scores, as floats.

    Args:
        model: With scores on these tasks at least.
        tasks: The K search tasks.

    Raises:
        InvalidInputError: a score is missing, or no fraction in [0, 1].
    """
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


def with_verdicts(config: Config, scored: Sequence[Scored], tasks: Sequence[str]) -> list[Scored]:
    """The models with exactly the search tasks' verdicts where selection needs them, with none elsewhere.

    Args:
        config: Method of the evolution.
        scored: With verdicts where they are needed.
        tasks: The K search tasks.

    Raises:
        InvalidInputError: verdicts are needed and missing.
    """
    if not algorithm(config).needs_verdicts:
        return [replace(model, verdicts=None) for model in scored]
    for model in scored:
        if model.verdicts is None or not set(tasks) <= set(model.verdicts):
            raise InvalidInputError(
                f"model '{model.model.id}' comes without verdicts on every task, which its method needs"
            )
    return [replace(model, verdicts={task: tuple((model.verdicts or {})[task]) for task in tasks}) for model in scored]


def best_average(state: State) -> Evaluated:
    """The evaluated model with the best average; ties keep the earlier. It need not be an elite.

    Args:
        state: A snapshot.
    """
    return max(state.history, key=lambda line: average(line.scores))


def alive(config: Config, state: State) -> tuple[Evaluated, ...]:
    """The models whose checkpoints the evolution still needs, in the history's order; all others may be collected.

    What the search may select as a parent, the best on each task and the best by average, for the final model.

    Args:
        config: Method of the evolution.
        state: The current snapshot.
    """
    needed = {model.model.id for model in algorithm(config).pool(state)} | {best_living(state).model.id}
    needed |= {line.model.id for line in state.bests.values()}
    return tuple(line for line in state.history if line.model.id in needed)


def best_living(state: State) -> Evaluated:
    """The model with the best average whose checkpoint exists; ties keep the earlier. It need not be an elite.

    Args:
        state: The current snapshot.
    """
    return next(line for line in state.history if line.model == state.best)


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
    return config.method.final.recipe(state, best_living(state), aggregated)


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
