"""Search algorithms, a file each: what is asked for next, and what the scores of it change.

A subclass of `Algorithm` in a module of this package is a value of `method.algorithm`, by the module's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cycleqd.errors import InvalidInputError
from cycleqd.loading import load_class
from cycleqd.search.operators import Parameters
from cycleqd.search.randomness import stream
from cycleqd.search.records import Child, Evaluated, Plan, Scored, average

if TYPE_CHECKING:
    from cycleqd.search.config import Config
    from cycleqd.search.state import State


class Algorithm(ABC):
    """One algorithm on one configuration. It holds no state: that is `State`'s, as it was, and as it becomes.

    A subclass defines where parents come from and what becomes of the population; one that proposes children in another
    way overrides `ask` and `tell`.
    """

    own_modules: ClassVar[str] = "cycleqd.search.algorithms.{}"

    rescorable: ClassVar[bool] = True
    """Whether the search may go on from other scores than those that its children were planned by."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.method = config.method

    @property
    @abstractmethod
    def label(self) -> str:
        """What readers of a report call the method."""

    def problems(self) -> Iterator[str]:
        """What is wrong with its configuration, in sentences: one is enough to refuse it."""
        yield from ()

    @property
    def needs_verdicts(self) -> bool:
        """Whether selection needs every sample's verdict with the scores."""
        return False

    @property
    def children(self) -> int:
        """Children of a generation that no budget cuts short."""
        return len(self.turn(0)) * self.method.children

    @property
    def period(self) -> int:
        """Generations until every archive that is searched had its turn."""
        return 1

    def turn(self, generation: int) -> tuple[str, ...]:
        """Quality tasks of the archives in focus in a generation, in archive order; ("",) for a population.

        Args:
            generation: Generation, from 0.
        """
        return ("",)

    @abstractmethod
    def pool(self, state: State) -> Sequence[Scored]:
        """The models that may still be selected as parents: their checkpoints are kept.

        Args:
            state: The current snapshot.
        """

    @abstractmethod
    def parents(self, state: State, focus: str, rng: np.random.Generator) -> Sequence[Scored]:
        """The parents of a child, two as a rule; one model alone is paired with itself.

        Args:
            state: The current snapshot.
            focus: Quality task of the child's archive; "" for a population.
            rng: The only source of randomness.
        """

    def population(self, state: State, scored: Sequence[Scored]) -> tuple[Scored, ...]:
        """The next population; empty for algorithms that select from archives.

        Args:
            state: The snapshot before.
            scored: The generation's children with their scores.
        """
        return ()

    def ask(self, state: State, limit: int | None = None) -> Plan:
        """The children of the next generation: a function of configuration and snapshot alone.

        Every archive in focus gets `method.children` of them, in archive order, all from the same snapshot. Each draw
        has a random stream of its own, so that adding one shifts no other.

        Args:
            state: The current snapshot.
            limit: Most children to plan; None: no limit.

        Raises:
            InvalidInputError: the crossover does not draw one weight ω a parent.
        """
        seed, generation = self.config.seed, state.generation
        focus = [task for task in self.turn(generation) for _ in range(self.method.children)][:limit]
        crossings = []
        for index, task in enumerate(focus):
            parents = self.parents(state, task, stream(seed, generation, index, "parents"))
            drawn = self.method.crossover.draw(len(parents), stream(seed, generation, index, "omega"))
            crossings.append((parents, drawn))
        return self.plan(state, focus, crossings)

    def plan(
        self, state: State, focus: Sequence[str], crossings: Sequence[tuple[Sequence[Scored], Parameters]]
    ) -> Plan:
        """The plan of children whose parents are chosen; their mutations are drawn here.

        Args:
            state: The current snapshot.
            focus: Quality task of each child's archive; "" for a population.
            crossings: Each child's parents, and what its crossover drew.

        Raises:
            InvalidInputError: the crossover does not draw one weight ω a parent.
        """
        children = tuple(self._child(state, index, *crossing) for index, crossing in enumerate(crossings))
        return Plan(generation=state.generation, snapshot=state.digest, focus=tuple(focus), children=children)

    def _child(self, state: State, index: int, parents: Sequence[Scored], crossed: Parameters) -> Child:
        crossover, mutation = self.method.crossover, self.method.mutation
        if len(crossed.get("omega", ())) != len(parents):
            raise InvalidInputError(
                f"crossover '{crossover.kind}' draws {dict(crossed)}; it must draw 'omega', one number a parent"
            )
        mutated = mutation.draw(stream(self.config.seed, state.generation, index, "mutation"))
        return Child(
            id=f"g{state.generation:06d}-c{index:02d}",
            generation=state.generation,
            index=index,
            base=state.base.model,
            parents=tuple(parent.model for parent in parents),
            crossover=crossover.record(crossed),
            mutation=mutation.record(mutated),
        )

    def tell(self, state: State, scored: Sequence[Scored]) -> State:
        """The state after a generation: its children were offered to all K archives, in order.

        Archives are kept for every algorithm, so that all have the same measures and the same final model.

        Args:
            state: The snapshot before.
            scored: The generation's children with their scores, in the plan's order.
        """
        archives, copies = list(state.archives), self.method.copies
        for model in scored:
            archives = copies.offer(model, archives, state.ties)
        lines = tuple(Evaluated(state.generation, m.model, m.scores, m.origin) for m in scored)
        kept = tuple(line for line in state.history if line.model == state.best)
        return replace(
            state,
            generation=state.generation + 1,
            archives=tuple(archives),
            population=self.population(state, scored),
            history=state.history + lines,
            best=max((*kept, *lines), key=lambda line: average(line.scores)).model,  # ties keep the earlier
            rescored=(),
            digest="",
        )


def algorithm(config: Config) -> Algorithm:
    """The algorithm of a configuration.

    Args:
        config: Its `method.algorithm` names it.

    Raises:
        InvalidInputError: there is none of that name.
    """
    found: type[Algorithm] = load_class(config.method.algorithm, Algorithm)  # type: ignore[type-abstract]
    return found(config)
