"""The section `method`: the algorithm, its operators, grids and stop rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from cycleqd.errors import InvalidInputError
from cycleqd.loading import load_class, meant, own_names
from cycleqd.search.algorithms import Algorithm
from cycleqd.search.fields import Fraction, Name, Section, absolute_plugin
from cycleqd.search.operators import Operator
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.final import Final
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.selection import Selection


def _known_algorithm(name: str) -> str:
    """Refuse an algorithm that there is no module of."""
    if name not in (names := own_names(Algorithm.own_modules)):
        raise ValueError(f"there is no algorithm '{name}'{meant(name, names)}; there are {', '.join(names)}")
    return name


class GridConfig(Section):
    """The archives' grids: bins per axis and how their bounds are set (at seeding, once)."""

    bins: int | dict[Name, int] = 15
    """Bins of an axis: one number for all tasks, or one for each."""
    bounds: Literal["experts", "own_expert"] | dict[Name, tuple[Fraction, Fraction]] = "experts"
    """0.85 × the lowest to 1.15 × the highest score of all experts, or of the task's own; or [low, high] for each."""

    @field_validator("bins")
    @classmethod
    def _positive(cls, bins: int | dict[str, int]) -> int | dict[str, int]:
        for count in [bins] if isinstance(bins, int) else bins.values():
            if count < 1:
                raise ValueError(f"bins must be at least 1, not {count}")
        return bins

    @model_validator(mode="after")
    def _ordered(self) -> GridConfig:
        for task, (low, high) in self.bounds.items() if isinstance(self.bounds, dict) else ():
            if low > high:
                raise ValueError(f"bounds of task '{task}' are [{low}, {high}]: the first must not exceed the second")
        return self


def _find_operator(base: type[Operator], default: str) -> Any:
    """How a configuration's {kind: …, settings} becomes an operator: its class is found by `kind`, and validates it.

    A file is taken from the configuration's own folder or, where a frozen one is read, from the folder that its stored
    plug-ins were fetched to, and then keeps its name there.
    """

    def find(value: Any, handler: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return handler(value)
        kind = value.get("kind", default)
        if not isinstance(kind, str):
            raise ValueError(f"kind is {kind!r}; it is a name")
        kind, root = absolute_plugin(kind, info), (info.context or {}).get("plugins") or Path()
        try:
            found = load_class(kind, base, root)
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        return found.model_validate({**value, "kind": kind}, context=info.context)

    return WrapValidator(find)


ParentSelection = Annotated[SerializeAsAny[Selection], _find_operator(Selection, "elite")]
CopiesRule = Annotated[SerializeAsAny[Copies], _find_operator(Copies, "allow")]
CrossoverOperator = Annotated[SerializeAsAny[Crossover], _find_operator(Crossover, "mean")]
MutationOperator = Annotated[SerializeAsAny[Mutation], _find_operator(Mutation, "svd")]
FinalRule = Annotated[SerializeAsAny[Final], _find_operator(Final, "better")]


def _default() -> Any:
    """The default operator."""
    return Field(default={}, validate_default=True)


class StopConfig(Section):
    """Stop early: after a number of child evaluations, or of generations without a better best average."""

    evaluations: int | None = Field(default=None, ge=1)
    """A budget of evaluated children; empty: none."""
    patience: int | None = Field(default=None, ge=1)
    """Generations without a better best average; empty: none."""


class Baselines(Section):
    """What the final model is compared with, beside base, experts and their naive merge. No search knows of it."""

    task_arithmetic: tuple[Annotated[float, Field(ge=0.001, le=10)], ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), max_length=12
    )
    """Values of λ of task arithmetic, θ_base + λ Σ τ over all experts, twelve at most. When the search is over each is
    scored on the search split, and the best one on the held-out samples, too. An empty list: not measured."""

    @field_validator("task_arithmetic")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{value:g}" for value in values}) < len(values):
            raise ValueError(f"values of λ must differ in their first six digits, unlike {list(values)}")
        return values


class Method(Section):
    """What is computed: the algorithm, its operators, and settings of single algorithms."""

    algorithm: Annotated[str, AfterValidator(_known_algorithm)] = "cycleqd"
    """The search algorithm: `cycleqd` (archives); the baselines `nsga2` and `lexicase` (a population); or a
    search of the coefficients of a merge of all experts: `task_arithmetic` (by lines), `random_search`, `cmaes`."""
    generations: int = Field(default=1200, ge=0)
    """Generations of the whole evolution."""
    children: int = Field(default=1, ge=1)
    """Children of a generation, for each archive in focus."""
    focus: Literal["cyclic", "all", "fixed"] | Annotated[dict[Literal["fixed"], Name], Field(min_length=1)] = "cyclic"
    """The archives that a generation works on: the next in turn, `all`, or one: the first task's or `{fixed: TASK}`."""
    grid: GridConfig = GridConfig()
    """The grids of the archives."""
    parents: ParentSelection = _default()
    """Which elites become parents."""
    copies: CopiesRule = _default()
    """What happens to copies of an elite."""
    crossover: CrossoverOperator = _default()
    """How the parents' task vectors are combined."""
    mutation: MutationOperator = _default()
    """How a child's task vector is changed."""
    population: int = Field(default=16, ge=2)
    """Size of the population of `nsga2` and `lexicase`."""
    lexicase_cases: Literal["scores", "samples"] = "scores"
    """What `lexicase` filters by: tasks' scores, or single samples."""
    lexicase_epsilon: float = Field(default=0.0, ge=0)
    """`lexicase` keeps models whose score is within this of the best."""
    final: FinalRule = _default()
    """Which model is the final one."""
    baselines: Baselines = Baselines()
    """What the final model is compared with."""
    stop: StopConfig = StopConfig()
    """When to stop early."""

    @property
    def operators(self) -> dict[str, Operator]:
        """The operators by their key in the section."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if isinstance(value, Operator)}
