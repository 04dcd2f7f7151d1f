"""Equal models in the span share one object, which goes with the last model that needs it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd.errors import IntegrityError
from cycleqd.run.audit import trace, verify
from cycleqd.run.replay import rebuild, stored, to_rebuild
from cycleqd.storage import layout
from cycleqd.storage.cleaning import clean, clean_cores, needed
from cycleqd.storage.cores import cores, load_core, save_core
from cycleqd.storage.evolution import core_key, current, find_manifest, load_config, manifest, model_ref
from cycleqd.storage.family import family
from cycleqd.weights.manifest import CORE
from tests.conftest import new_bucket, reached
from tests.evolution import EXPERTS, Evolution, write_adapters

COPIES = '''"""A crossover for tests: the first parent as it is, or half of it."""

from cycleqd.plugins import NormalWeights, SpanCrossover


class Copies(NormalWeights, SpanCrossover):
    """Children of few kinds."""

    def draw(self, parents, rng):
        """1 and 0, or 1 and 1."""
        return {"omega": [1.0, float(rng.integers(2))]}

    def coefficients(self, values, tensor):
        """1 or 1/2 of the first."""
        return [1 / sum(values["omega"]), 0.0]
'''
ECHO = Path(__file__).parents[2] / "examples/engines/echo.py"
CHILDREN = tuple(f"g{generation:06d}-c{index:02d}" for generation in range(2) for index in range(4))


@pytest.fixture(scope="module")
def _pinned(
    services: dict[str, str], tiny_models: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Evolution]:
    """A finished evolution without mutation, whose first two experts are equal, and all models score the same.

    Every child is pinned.
    """
    folder = write_adapters(tiny_models, tmp_path_factory.mktemp("adapters"))
    shutil.rmtree(folder / "b")
    shutil.copytree(folder / "a", folder / "b")
    (folder / "copies.py").write_text(COPIES)
    method = {"crossover": {"kind": f"{folder / 'copies.py'}:Copies"}, "mutation": {"kind": "none"}}
    changes = {
        "models": {"experts": {name: {"path": str(folder / name)} for name in EXPERTS}},
        "evaluation": {"engine": f"{ECHO}:Echo"},
        "method": {"generations": 4, "children": 4, "grid": {"bins": 2}, **method},
        "place": {"pins": CHILDREN},
    }
    with pytest.MonkeyPatch.context() as patch:
        variables = new_bucket(services, tmp_path_factory.mktemp("pinned"), patch)
        made = Evolution.make(f"pinned-{variables['CYCLEQD_BUCKET']}", tiny_models, tiny_tasks, changes)
        made.seeding()
        assert set(made.store.list(layout.CORES)) == needed_cores(made)
        made.generation()
        made.generation()
        made.build_final()
    return variables, made


@pytest.fixture
def pinned(
    _pinned: tuple[dict[str, str], Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Evolution]:
    """That evolution; what a test does to its cores is undone."""
    made = reached(_pinned, tmp_path, monkeypatch)
    before = {key: made.store.get(key) for key in made.store.list(layout.CORES)}
    yield made
    made.store.delete(made.store.list(layout.CORES).keys() - before.keys())
    for key, data in before.items():
        made.store.put(key, data)


@pytest.fixture
def unpinned(_pinned: tuple[dict[str, str], Evolution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evolution:
    """That evolution without pins, for the last tests of this file: it goes on."""
    made = reached(_pinned, tmp_path, monkeypatch)
    return Evolution(made.config.model_copy(update={"place": made.config.place.model_copy(update={"pins": ()})}))


def needed_cores(made: Evolution, pins: tuple[str, ...] = ()) -> set[str]:
    """What must be under cores/, and nothing else, while no generation is in flight."""
    head, state = current(made.store)
    models = {*needed(made.store, made.config, head.snapshot, state), *pins, *made.config.combined}
    models |= {expert.model.id for expert in state.experts}
    found = (find_manifest(made.store, model) for model in models)
    return {layout.core(each.digest) for each in found if each is not None and each.is_core}


def test_equal_models_have_one_object(pinned: Evolution) -> None:
    store = pinned.store
    digests = {model: manifest(store, model).digest for model in (*CHILDREN, "expert-a", "expert-b", "expert-c")}
    assert set(store.list(layout.CORES)) == needed_cores(pinned, CHILDREN)
    assert set(map(layout.core, digests.values())) <= set(store.list(layout.CORES))
    assert digests["expert-a"] == digests["expert-b"]
    assert {digests[child] for child in CHILDREN} & {digests["expert-a"], digests["expert-c"]}, "a child is an expert"
    assert not [key for key in store.list("") if key.endswith(CORE)]
    for digest in digests.values():
        assert stored(store, next(model for model, one in digests.items() if one == digest))


def test_a_shared_object_goes_with_the_last_model_that_needs_it(pinned: Evolution) -> None:
    store, config = pinned.store, load_config(pinned.store)
    needless = needed_cores(pinned, CHILDREN) - needed_cores(pinned)
    keys = {child: layout.core(manifest(store, child).digest) for child in CHILDREN}
    key, shared = Counter(key for key in keys.values() if key in needless).most_common(1)[0]
    assert shared > 1, "the example should have two children of one core that nothing else needs"
    first = next(child for child in CHILDREN if keys[child] == key)
    pins = [child for child in CHILDREN if child != first]
    clean(store, config, pins)
    assert set(store.list(layout.CORES)) == needed_cores(pinned, CHILDREN) and load_core(store, model_ref(store, first))
    clean(store, config, [first])
    assert store.exists(key)
    clean(store, config)
    assert set(store.list(layout.CORES)) == needed_cores(pinned) and key not in needed_cores(pinned)
    with pytest.raises(IntegrityError, match=r"is not there: it was cleaned up; `cycleqd replay` rebuilds the model"):
        load_core(store, model_ref(store, first))
    clean(store, config)
    assert set(store.list(layout.CORES)) == needed_cores(pinned), "the experts' and the final model's stay"


def test_what_another_finalising_writes_is_left_alone(pinned: Evolution) -> None:
    store, config = pinned.store, load_config(pinned.store)
    (core,) = cores(store, [model_ref(store, "expert-a")])
    new = layout.core(save_core(store, core.like({n: 2 * matrix for n, matrix in core.matrices.items()})).digest)
    claimed = store.get_json(layout.FINAL_PLAN)
    clean(store, config)
    clean_cores(store, config, {**claimed, "snapshot": 1})
    assert store.exists(new)
    clean_cores(store, config, claimed)
    assert set(store.list(layout.CORES)) == needed_cores(pinned)


def test_a_damaged_object_is_written_again(pinned: Evolution) -> None:
    store, model = pinned.store, model_ref(pinned.store, "expert-c")
    (core,) = cores(store, [model])
    whole = store.get(core_key(store, model))
    store.put(core_key(store, model), whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"has digest .*, recorded was"):
        load_core(store, model)
    save_core(store, core)
    assert store.get(core_key(store, model)) == whole


def test_a_planned_child_may_be_equal_to_any_model(unpinned: Evolution) -> None:
    store, config = unpinned.store, load_config(unpinned.store)
    before = set(store.list(layout.CORES))
    loop = unpinned.select()
    unpinned.merge(*loop)
    unpinned.mutate(*loop[:-1])
    clean(store, config)
    assert set(store.list(layout.CORES)) >= before, "one child is not made"
    unpinned.mutate(loop[-1])
    clean(store, config)
    children = [json.loads(item)["child"] for item in loop]
    in_flight = {layout.core(manifest(store, child).digest) for child in children}
    assert set(store.list(layout.CORES)) == needed_cores(unpinned) | in_flight
    unpinned.evaluate(children)
    unpinned.update(2)
    unpinned.build_final()
    assert set(store.list(layout.CORES)) == needed_cores(unpinned), "also those of the final model that was replaced"


def test_an_evolution_whose_models_are_in_their_homes_goes_on(unpinned: Evolution, tmp_path: Path) -> None:
    """As they were before models were named by their content."""
    store = unpinned.store
    models = [*CHILDREN, "naive", "aggregated", "final", *(f"expert-{name}" for name in EXPERTS)]
    models = [model for model in models if stored(store, model)]
    for model in models:
        store.put(f"{layout.checkpoint(model)}/{CORE}", store.get(layout.core(manifest(store, model).digest)))
    store.delete_prefix(layout.CORES)
    for model in models:
        assert stored(store, model) and load_core(store, model_ref(store, model))
    config = load_config(store)
    found = trace(store, config, models, pins=CHILDREN)
    assert f"{layout.checkpoint('final')}/{CORE}" in found.objects
    assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    names = to_rebuild(store, "final", family(store, ["final"]))
    assert rebuild(store, config, names, tmp_path, lambda done: None).digest == manifest(store, "final").digest
    unpinned.generation()
    head, state = current(store)
    kept = needed(store, config, head.snapshot, state)
    assert set(store.list(layout.CORES)) <= needed_cores(unpinned)
    assert {child for child in CHILDREN if store.list(layout.checkpoint(child))} == kept & set(CHILDREN)
    assert all(stored(store, model) for model in {*kept, *models} - set(CHILDREN))
