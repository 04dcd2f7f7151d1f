"""Which parents, coefficients and mutation: the plan of a generation, from one snapshot and explicit randomness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cycleqd.errors import ConflictError
from cycleqd.search import cycle, lexicase, nsga2
from cycleqd.search import state as states
from cycleqd.search.archive import union
from cycleqd.search.config import Config, Copies, Method, Parents
from cycleqd.search.crossover import draw_omega
from cycleqd.search.grid import Cell
from cycleqd.search.nsga2 import score_matrix
from cycleqd.search.randomness import integer_seed, stream
from cycleqd.search.records import Child, Mutation, Plan, Scored
from cycleqd.search.state import State

Weights = NDArray[np.float64]
Pair = tuple[Scored, Scored]


def plan(config: Config, state: State) -> Plan:
    """The children of the next generation, a function of the config and the snapshot alone.

    Each archive in focus gets `children` of them, in archive order, all from the same snapshot; NSGA-II and Lexicase
    make `children` in all. What the budget of evaluations no longer allows is left out.
    Raises ConflictError when the search is over.
    """
    if reason := states.should_stop(config, state):
        raise ConflictError(f"evolution '{config.name}' has nothing left to do: {reason}")
    method, generation = config.method, state.generation
    turn = cycle.turn(method.focus, state.tasks, generation) if method.algorithm == "cycleqd" else ("",)
    focus = [task for task in turn for _ in range(method.children)][: states.remaining(config, state)]
    children = []
    for index, task in enumerate(focus):
        pair = parents(method, state, task, stream(config.seed, generation, index, "parents"))
        children.append(
            Child(
                id=f"g{generation:06d}-c{index:02d}",
                generation=generation,
                index=index,
                base=state.base.model,
                parents=tuple(parent.model for parent in pair),
                omega=draw_omega(method.crossover, stream(config.seed, generation, index, "omega")),
                mutation=_mutation(method, stream(config.seed, generation, index, "mutation")),
            )
        )
    return Plan(generation=generation, snapshot=state.digest, focus=tuple(focus), children=tuple(children))


def _mutation(method: Method, rng: np.random.Generator) -> Mutation:
    """The config's mutation with its seed; settings that the kind does not use keep their neutral values."""
    settings, seed = method.mutation, integer_seed(rng)
    if settings.kind == "svd":
        return Mutation("svd", mode=settings.mode, w_max=settings.w_max, embeddings=settings.embeddings, seed=seed)
    if settings.kind == "gaussian":
        return Mutation("gaussian", sigma=settings.sigma, embeddings=settings.embeddings, seed=seed)
    return Mutation()


def parents(method: Method, state: State, quality: str, rng: np.random.Generator) -> Pair:
    """Two distinct parents by the config's method; a model that is all alone is paired with itself.

    `quality` names the archive in focus (no matter for NSGA-II and Lexicase, which select from the population).
    """
    if method.algorithm == "nsga2":
        return nsga2.tournament(state.population, state.tasks, rng)
    if method.algorithm == "lexicase":
        cases = lexicase.case_matrix(state.population, state.tasks, method.lexicase_cases)
        return lexicase.parents(state.population, cases, rng, method.lexicase_epsilon)
    archive = next(archive for archive in state.archives if archive.quality == quality)
    if len(archive.elites) > 1:
        models, cells = tuple(archive.elites.values()), tuple(archive.elites)
    else:
        searched = cycle.searched(method.focus, state.tasks)
        models, cells = union(a for a in state.archives if a.quality in searched), ()
    weights = gamma(models, state.tasks, method.parents) / kin(models, state.tasks, method.copies)
    return _pair(models, weights, cells, method.parents.neighbours, rng)


def gamma(models: Sequence[Scored], tasks: Sequence[str], settings: Parents) -> Weights:
    """γ_j = Π_k (α_low + norm(f_jk)·(α_high − α_low)) over all K tasks, [n] (paper section 3.2); random parents: ones.

    norm is min-max over these models; where all score the same on a task, its factor is α_high for every one.
    """
    if settings.kind == "random":
        return np.ones(len(models))
    scores = score_matrix(models, tasks)
    low, span = scores.min(axis=0), np.ptp(scores, axis=0)
    norm = np.where(span > 0, (scores - low) / np.where(span > 0, span, 1.0), 1.0)
    factors = settings.alpha_low + norm * (settings.alpha_high - settings.alpha_low)
    return np.asarray(factors.prod(axis=1))


def kin(models: Sequence[Scored], tasks: Sequence[str], settings: Copies) -> Weights:
    """How many of the models are of each one's kind, itself included, [n]; ones unless copies are shared.

    Same kind: equal digests, or scores that differ by less than ε on every task.
    """
    if settings.kind != "share":
        return np.ones(len(models))
    scores = score_matrix(models, tasks)
    close = np.abs(scores[:, None] - scores[None, :]).max(axis=2) < settings.epsilon
    names = np.array([model.model.digest for model in models])
    return np.asarray((close | (names[:, None] == names[None, :])).sum(axis=1, dtype=float))


def _pair(
    models: Sequence[Scored], weights: Weights, cells: Sequence[Cell], radius: int, rng: np.random.Generator
) -> Pair:
    """The first parent by the weights; the second, by the same weights, among its neighbours or else all others."""
    first = _draw(weights, np.arange(len(models)), rng)
    others = np.array([i for i in range(len(models)) if i != first] or [first])
    if radius and cells:
        here = np.array(cells[first])
        near = [i for i in others if np.abs(np.array(cells[i]) - here).max() <= radius]
        others = np.array(near) if near else others
    return models[first], models[_draw(weights, others, rng)]


def _draw(weights: Weights, among: NDArray[np.int_], rng: np.random.Generator) -> int:
    """One of the indices `among`, in proportion to its weight; uniformly when they all weigh nothing (α_low = 0)."""
    mass = weights[among]
    chances = mass / mass.sum() if mass.sum() > 0 else np.full(len(among), 1 / len(among))
    return int(rng.choice(among, p=chances))
