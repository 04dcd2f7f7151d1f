"""Snapshots made anew from a history: with new scores, or one after another as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.records import Scored
from cycleqd.search.state import State, empty, seeded, validated, with_verdicts


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
            model = replace(found[line.model.id], origin=line.origin)
            made.setdefault(line.generation, []).append(validated(model, state.tasks))
    search = algorithm(config)
    again = seeded(config, base, [found[expert.model.id] for expert in state.experts], state.ties)
    for generation in range(state.generation):
        again = search.tell(again, with_verdicts(config, made.get(generation, []), state.tasks))
    forgotten = state.evaluations - len(again.children)
    return replace(again, rescored=(*state.rescored, state.digest), forgotten=forgotten)


def replayed(config: Config, state: State) -> Iterator[State]:
    """Every snapshot from 0 to this one, rebuilt from the history (populations without verdicts).

    Args:
        config: Method of the evolution.
        state: The last snapshot.
    """
    search = algorithm(config)
    yield (current := search.tell(empty(config, state.base, state.experts, state.ties), state.experts))
    made = {
        generation: [Scored(line.model, line.scores, origin=line.origin) for line in lines]
        for generation, lines in groupby(state.children, key=lambda line: line.generation)
    }
    for generation in range(state.generation):
        yield (current := search.tell(current, made.get(generation, [])))
