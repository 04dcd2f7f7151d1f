"""The methods to compare: configurations that differ in their method alone, and a search of coefficients in earnest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import ConflictError
from cycleqd.loading import own_names
from cycleqd.report.collect import collect
from cycleqd.report.family import tree
from cycleqd.run.audit import trace, verify
from cycleqd.run.checks import Findings, check_models
from cycleqd.run.replay import rebuild
from cycleqd.run.rescore import rescore
from cycleqd.search import rebuilt, state
from cycleqd.search.algorithms import Algorithm, algorithm
from cycleqd.search.config import load, parse
from cycleqd.storage.evolution import current, load_config, manifest, need_plan
from cycleqd.storage.family import family
from cycleqd.storage.settings import Settings
from tests.evolution import EXPERTS, Evolution, write_adapters
from tests.search.world import World, config

EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = sorted((EXAMPLES / "methods").glob("*.yaml"))


def searching(made: Evolution, layers: int) -> Evolution:
    """The evolution with CMA-ES over the coefficients of experts' layers."""
    method = {
        "algorithm": "cmaes",
        "generations": 2,
        "children": 4,
        "grid": {"bins": 4},
        "crossover": {"kind": "combination", "own": "layers", "layers": layers},
        "mutation": {"kind": "none"},
        "baselines": {"task_arithmetic": []},
    }
    return Evolution(parse({**made.tree, "method": method}, "test"))


def test_they_differ_in_their_method_alone_and_have_one_budget() -> None:
    demo = load(EXAMPLES / "tiny/config.yaml").model_dump(mode="json", exclude={"name", "method"})
    found = [load(path) for path in METHODS]
    assert all(each.model_dump(mode="json", exclude={"name", "method"}) == demo for each in found)
    assert [each.name for each in found] == [f"tiny-{path.stem}" for path in METHODS]
    assert {each.method.generations * algorithm(each).children for each in found} == {96}
    assert {each.method.algorithm for each in found} == set(own_names(Algorithm.own_modules))
    page = (EXAMPLES / "methods/README.md").read_text()
    assert all(f"({path.name})" in page for path in METHODS)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_each_runs(path: Path) -> None:
    method = load(path).method.model_dump(mode="json")
    world = World(config({**method, "generations": 3}))
    last = world.run()[-1]
    assert len(last.children) == 18
    assert state.best_average(last).generation >= 0  # a child, not an expert


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("weights", ["dense", "span"])
def test_coefficients_are_searched_with_real_models(
    evolution: Callable[..., Evolution], tiny_models: Path, tmp_path: Path, weights: str
) -> None:
    changes: dict[str, object] = {}
    if weights == "span":
        adapters = tmp_path / "adapters"
        adapters.mkdir()
        write_adapters(tiny_models, adapters)
        changes["models"] = {"experts": {name: {"path": str(adapters / name)} for name in EXPERTS}}
    made = searching(evolution(weights, **changes), 2)
    findings = Findings()
    check_models(made.config, None, findings)
    assert findings.problems == []
    made.seeding()
    first, second = made.generation(), made.generation()
    made.build_final()
    store, frozen = made.store, load_config(made.store)
    assert frozen.models.weights == weights
    plan = need_plan(store, 1)
    assert plan.children == state.planned(frozen, list(rebuilt.replayed(frozen, current(store)[1]))[1]).children
    child = plan.children[0]
    assert [parent.id for parent in child.parents] == [f"expert-{name}" for name in EXPERTS]

    members = family(store, [child.id])
    assert set(members) == {child.id, *(parent.id for parent in child.parents)}
    assert members[child.id].parents == child.shares
    found = trace(store, frozen, [*first, *second], pins=())
    assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    for model in (first[-1], child.id):
        again = rebuild(store, frozen, [model], tmp_path / model, lambda done: None)
        assert again.digest == manifest(store, model).digest
    assert "final" in tree(collect(store))
    with pytest.raises(ConflictError, match="algorithm 'cmaes' plans by the scores of all children"):
        rescore(Settings.from_environment(), store, frozen)


def test_more_layers_than_were_counted_are_a_problem_before_seeding(evolution: Callable[..., Evolution]) -> None:
    findings = Findings()
    check_models(searching(evolution("few"), 1).config, None, findings)
    (problem,) = findings.problems
    assert "is in layer 1 from 0, but method.crossover.layers is 1" in problem
