"""One evolution twice, as full float32 checkpoints and as cores: the same plans, the same weights up to rounding."""

import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.operators import Drawn
from cycleqd.search.records import Child, ModelRef, Scored
from cycleqd.search.state import State
from cycleqd.weights.aggregate import combine
from cycleqd.weights.basis import open_basis, write_basis
from cycleqd.weights.densified import Densified
from cycleqd.weights.extract import extract
from cycleqd.weights.kinds import carried_by_none
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.lora import open_adapter
from cycleqd.weights.merge import merge
from cycleqd.weights.span import Core, low_rank, project
from cycleqd.weights.span import combine as combine_cores
from cycleqd.weights.span import merge as merge_cores
from cycleqd.weights.span import mutate as mutate_core
from cycleqd.weights.stream import write_checkpoint
from tests.weights.models import Tensors, loaded, opened, tensors, write_model

GENERATIONS, RANK = 8, 3
TASKS = ("code", "db", "os")
MATRICES = [name for name, tensor in tensors(0).items() if "layers" in name and tensor.ndim == 2]


def config(**mutation: Any) -> Config:
    return Config.model_validate(
        {
            "name": "law",
            "seed": 5,
            "models": {"base": "base", "experts": {task: {"path": task, "task": task} for task in TASKS}},
            "tasks": {task: {"class": "code", "data": task} for task in TASKS},
            "method": {
                "generations": GENERATIONS,
                "children": 2,
                "grid": {"bins": 6},
                "mutation": {"kind": "svd", **mutation},
            },
        }
    )


def factors(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {name: tensors(0)[name].shape for name in MATRICES}
    return {
        name: (0.1 * torch.randn(out, RANK, generator=rng), 0.1 * torch.randn(RANK, inputs, generator=rng))
        for name, (out, inputs) in shapes.items()
    }


EXPERTS = {task: factors(seed) for seed, task in enumerate(TASKS, start=1)}


def scores(tau: Mapping[str, torch.Tensor], experts: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """An analytic task's score is the closeness of τ to its expert, and to the others' a little; two decimals."""
    found = {}
    for task, goal in experts.items():
        distance = sum(float((tau[name] - 0.9 * goal[name]).square().sum()) for name in goal)
        scale = sum(float(of_expert.square().sum()) for of_expert in goal.values())
        found[task] = round(math.exp(-distance / scale), 2)
    return found


Make = Callable[[Child], Mapping[str, torch.Tensor]]


def evolve(
    settings: Config,
    taus: dict[str, Mapping[str, torch.Tensor]],
    goals: Mapping[str, Mapping[str, torch.Tensor]],
    make: Make,
) -> tuple[list[State], list[object]]:
    """The states and plans of an evolution whose models' task vectors are in `taus`; digests are the models' ids."""
    found, plans = [], []

    def scored(model: str) -> Scored:
        return Scored(ModelRef(model, model), scores(taus[model], goals))

    experts = [scored(f"expert-{task}") for task in TASKS]
    state = states.seeded(settings, Scored(ModelRef("base", "base"), dict.fromkeys(TASKS, 0.01)), experts)
    for _ in range(GENERATIONS):
        plan = states.planned(settings, state)
        for child in plan.children:
            taus[child.id] = make(child)
        state = states.updated(settings, state, plan, [scored(child.id) for child in plan.children])
        found.append(state)
        plans.append(plan.to_json())
    return found, plans


def make_dense(folder: Path, settings: Config, child: Child) -> None:
    """Merge and mutate a child's checkpoint."""
    theta, parents = opened(folder / "base"), [opened(folder / parent.id) for parent in child.parents]
    crossover = Drawn(settings.method.crossover, child.crossover)
    mutation = Drawn(settings.method.mutation, child.mutation)
    merge(theta, parents, crossover, LocalSink(folder / child.id), mutation=mutation)


def agreed(
    settings: Config,
    taus: dict[str, Mapping[str, torch.Tensor]],
    others: dict[str, Mapping[str, torch.Tensor]],
    goals: Mapping[str, Mapping[str, torch.Tensor]],
    dense: Make,
    in_span: Make,
) -> State:
    """The last state of both evolutions, whose plans, states and, up to rounding, task vectors are the same."""
    dense_states, dense_plans = evolve(settings, taus, goals, dense)
    span_states, span_plans = evolve(settings, others, goals, in_span)
    assert dense_plans == span_plans
    assert [state.to_json() for state in dense_states] == [state.to_json() for state in span_states]
    assert len(taus) == 3 + 2 * GENERATIONS and taus.keys() == others.keys()
    for model, tau in taus.items():
        compare(tau, others[model], model)
    return span_states[-1]


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], model: str) -> None:
    for name, tau in expected.items():
        assert float((tau - found[name]).norm()) <= 1e-4 * float(tau.norm()), (model, name)


def finish(folder: Path, settings: Config, state: State, cores: dict[str, Core]) -> None:
    """Combine the final model both ways."""
    final = states.final_recipe(settings, state, dict.fromkeys(TASKS, 1.0))
    betas = [beta for _, beta in final]
    combine(opened(folder / "base"), [opened(folder / ref.id) for ref, _ in final], betas, LocalSink(folder / "final"))
    cores["final"] = combine_cores([cores[ref.id] for ref, _ in final], betas)


def test_dense_and_span_give_the_same_plans_and_weights(tmp_path: Path) -> None:
    base = tensors(0, torch.float32)
    write_model(tmp_path / "base", base)
    for task, of_expert in EXPERTS.items():
        full = {
            name: base[name] + (of_expert[name][0] @ of_expert[name][1] if name in of_expert else 0) for name in base
        }
        write_model(tmp_path / f"expert-{task}", full)

    def dense_tau(model: str) -> Tensors:
        return {name: tensor - base[name] for name, tensor in loaded(tmp_path / model).items() if name in MATRICES}

    def dense(child: Child) -> Tensors:
        make_dense(tmp_path, config(), child)
        return dense_tau(child.id)

    basis_files = write_basis(MATRICES, lambda n: [e[n] for e in EXPERTS.values()], LocalSink(tmp_path / "basis"), 2)
    basis = open_basis(LocalSource(tmp_path / "basis"))
    cores = {
        f"expert-{task}": Core("base", basis_files.digest, project(basis, expert.__getitem__))
        for task, expert in EXPERTS.items()
    }

    def span_tau(core: Core) -> Tensors:
        return {name: b @ a for name, (b, a) in low_rank(basis, core).items()}

    def in_span(child: Child) -> Tensors:
        operators = config().method
        merged = merge_cores([cores[p.id] for p in child.parents], Drawn(operators.crossover, child.crossover))
        cores[child.id] = mutate_core(merged, Drawn(operators.mutation, child.mutation))
        return span_tau(cores[child.id])

    taus: dict[str, Mapping[str, torch.Tensor]] = {f"expert-{task}": dense_tau(f"expert-{task}") for task in TASKS}
    others: dict[str, Mapping[str, torch.Tensor]] = {model: span_tau(core) for model, core in cores.items()}
    goals = {task: {name: b @ a for name, (b, a) in expert.items()} for task, expert in EXPERTS.items()}
    last = agreed(config(), taus, others, goals, dense, in_span)
    finish(tmp_path, config(), last, cores)
    compare(dense_tau("final"), span_tau(cores["final"]), "final")


def test_with_what_no_adapter_carries_the_span_is_the_dense_evolution(tmp_path: Path) -> None:
    """Adapters of full rank, and beside them norms, embeddings and heads: a child's checkpoint is the dense child."""
    settings, base = config(embeddings=False), tensors(0, torch.float32)
    theta = opened(write_model(tmp_path / "base", base))
    floats = [name for name, tensor in base.items() if tensor.is_floating_point()]
    experts = [f"expert-{task}" for task in TASKS]
    for seed, expert in enumerate(experts, start=1):
        write_model(tmp_path / expert, tensors(seed, torch.float32, spread=0.1))

    def tau(folder: Path) -> Tensors:
        found = loaded(folder)
        return {name: found[name] - base[name] for name in floats}

    def dense(child: Child) -> Tensors:
        make_dense(tmp_path, settings, child)
        return tau(tmp_path / child.id)

    adapters = []
    for expert in experts:
        extract(theta, opened(tmp_path / expert), 64, LocalSink(tmp_path / f"adapter-{expert}"), base_model="base")
        adapters.append(open_adapter(LocalSource(tmp_path / f"adapter-{expert}"), theta))
    written = write_basis(MATRICES, lambda n: [a.factors(n) for a in adapters], LocalSink(tmp_path / "basis"), 2)
    basis, full = open_basis(LocalSource(tmp_path / "basis")), tuple(ModelRef(expert, expert) for expert in experts)
    assert carried_by_none(theta) == [name for name in theta.tensors if name in floats and name not in MATRICES]
    cores = {}
    for adapter, expert, unit in zip(adapters, experts, torch.eye(3), strict=True):
        kept = dict.fromkeys(carried_by_none(theta), unit)
        cores[expert] = Core("base", written.digest, project(basis, adapter.factors), full, kept)

    def written_out(model: str) -> Tensors:
        recipe = Densified(theta, basis, cores[model], [opened(tmp_path / expert) for expert in experts])
        folder = tmp_path / f"span-{model}"
        write_checkpoint(theta, recipe, LocalSink(folder), shard_size=10**9, threads=1, progress=None)
        return tau(folder)

    def in_span(child: Child) -> Tensors:
        merged = merge_cores([cores[p.id] for p in child.parents], Drawn(settings.method.crossover, child.crossover))
        again = Core.from_bytes(merged.to_bytes(), "merged")
        cores[child.id] = mutate_core(again, Drawn(settings.method.mutation, child.mutation))
        return written_out(child.id)

    taus: dict[str, Mapping[str, torch.Tensor]] = {expert: tau(tmp_path / expert) for expert in experts}
    others: dict[str, Mapping[str, torch.Tensor]] = {expert: written_out(expert) for expert in experts}
    for expert, name in product(experts, carried_by_none(theta)):
        assert torch.equal(others[expert][name], taus[expert][name])
    goals = {task: taus[f"expert-{task}"] for task in TASKS}
    last = agreed(settings, taus, others, goals, dense, in_span)
    finish(tmp_path, settings, last, cores)
    compare(tau(tmp_path / "final"), written_out("final"), "final")
