"""One evolution in memory: the product's algorithms and operators on the models of a `World`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.landscape.world import Model, World, digest, names
from cycleqd.search import state as states
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config, parse
from cycleqd.search.operators.crossover import ElementCrossover, SpanCrossover
from cycleqd.search.operators.mutation import CoreMutation, ElementMutation, Matrix, SpanMutation
from cycleqd.search.records import Child, ModelRef, Scored, average


def configured(method: Mapping[str, Any], world: World, evaluations: int) -> Config:
    """The configuration of a method on a problem, with its seed and a budget.

    Args:
        method: The section `method`; its budget is replaced, and the number of layers, where it names one.
        world: The problem.
        evaluations: Children of the whole evolution.
    """
    tasks = names(world.settings.tasks)
    tree = {
        "name": "landscape",
        "seed": world.seed,
        "models": {"base": "base", "experts": {task: {"path": task, "task": task} for task in tasks}},
        "tasks": {task: {"class": "landscape:Task", "data": task} for task in tasks},
        "method": {**method, "generations": 10**6, "stop": {"evaluations": evaluations}},
    }
    crossover = dict(method.get("crossover", {}))
    if "layers" in crossover:
        tree["method"]["crossover"] = crossover | {"layers": world.settings.layers}  # type: ignore[index]
    return parse(tree, "landscape")


class Evolution:
    """Models by id, and the state of their search."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.search = algorithm(config)
        self.models: dict[str, Model] = {"base": np.zeros_like(world.experts[0])}
        experts = zip(config.models.experts, world.experts, strict=True)
        self.models |= {f"expert-{name}": expert for name, expert in experts}
        base, *scored = [self.scored(name) for name in self.models]
        self.state = states.seeded(config, base, scored)

    def scored(self, name: str) -> Scored:
        """A model with its scores.

        Args:
            name: Its id.
        """
        model = self.models[name]
        return Scored(ModelRef(name, digest(model)), self.world.scores(model))

    def run(self) -> None:
        """All generations."""
        while (left := states.remaining(self.config, self.state)) != 0:
            scored = []
            for child in self.search.ask(self.state, left).children:
                self.models[child.id] = self.born(child)
                scored.append(self.scored(child.id))
            self.state = self.search.tell(self.state, scored)

    def born(self, child: Child) -> Model:
        """Crossover, then mutation, as `cycleqd.weights` has them done to tensors.

        Args:
            child: As it was planned.
        """
        parents = np.stack([self.models[parent.id] for parent in child.parents])
        layers = [self._crossed(child, layer, parents[:, layer]) for layer in range(parents.shape[1])]
        return np.stack([self._mutated(child, layer, matrix) for layer, matrix in enumerate(layers)])

    def _crossed(self, child: Child, layer: int, parents: Model) -> Model:
        operator, values = self.config.method.crossover, child.crossover
        if isinstance(operator, SpanCrossover):
            weights = np.array(operator.coefficients(values, _tensor(layer)))
            found: Model = np.tensordot(weights, parents, 1)
            return found
        assert isinstance(operator, ElementCrossover)
        flat = parents.reshape(len(parents), -1).astype(np.float32)
        return operator.combine(values, _tensor(layer), 0, flat).reshape(parents.shape[1:]).astype(np.float64)

    def _mutated(self, child: Child, layer: int, matrix: Model) -> Model:
        operator, values, name = self.config.method.mutation, child.mutation, _tensor(layer)
        if isinstance(operator, CoreMutation):
            return operator.change_core(values, name, (len(matrix), len(matrix)), matrix)
        if isinstance(operator, ElementMutation):
            flat = operator.change(values, name, 0, matrix.reshape(-1).astype(np.float32))
            return flat.reshape(matrix.shape).astype(np.float64)
        assert isinstance(operator, SpanMutation)
        what = Matrix(name, len(matrix), embedding=False)
        if not operator.mutates(what):
            return matrix
        u, sigma, vt = np.linalg.svd(matrix)
        found: Model = (u * (sigma * operator.factors(values, what))) @ vt
        return found

    def final(self) -> Model:
        """The final model, by the method's rule."""
        rule, aggregated = self.config.method.final, None
        if rule.makes == "either":
            aggregated = self.world.scores(self.combined(rule.aggregate(self.state)))
        return self.combined(states.final_recipe(self.config, self.state, aggregated))

    def combined(self, recipe: Sequence[tuple[ModelRef, float]]) -> Model:
        """θ_base + Σ β τ.

        Args:
            recipe: Models and β.
        """
        total = np.zeros_like(self.models["base"])
        for ref, beta in recipe:
            total += beta * self.models[ref.id]
        return total


def _tensor(layer: int) -> str:
    return f"model.layers.{layer}.weight"


def measured(method: Mapping[str, Any], world: World, evaluations: int) -> dict[str, float]:
    """One evolution in figures: true scores, which no noise touches, unless they say otherwise.

    average and worst: over the tasks, of the final model. single: the average of the model that scored best. late: the
    mean of the averages of the last third of all children, which rises where a search learns.
    shrinkage: by how much that model's average on the search's samples exceeds its true one. naive, expert: averages of
    the naive merge and of the best expert.

    Args:
        method: The section `method`.
        world: The problem.
        evaluations: Children of the whole evolution.
    """
    made = Evolution(configured(method, world, evaluations), world)
    made.run()
    best = states.best_average(made.state)
    single = float(world.chances(made.models[best.model.id]).mean())
    final = world.chances(made.final())
    naive = world.chances(np.mean(world.experts, axis=0))
    expert = max(float(world.chances(expert).mean()) for expert in world.experts)
    children = made.state.children
    late = [world.chances(made.models[line.model.id]).mean() for line in children[-(len(children) // 3) :]]
    found = {
        "average": float(final.mean()),
        "worst": float(final.min()),
        "single": single,
        "late": float(np.mean(late)),
        "shrinkage": average(best.scores) - single,
        "naive": float(naive.mean()),
        "expert": expert,
    }
    assert all(map(math.isfinite, found.values()))
    return found
