"""Operators of a user's own: a whole evolution by the stored copies of their files, which are verified."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.progress import no_bar
from cycleqd.report.collect import collect
from cycleqd.run.audit import trace
from cycleqd.run.replay import rebuild
from cycleqd.run.sources import bring
from cycleqd.search.config import load, parse
from cycleqd.search.records import average
from cycleqd.search.state import planned
from cycleqd.storage.evolution import load_config, manifest, need_plan
from tests.evolution import Evolution
from tests.search.world import World, config

OWN = Path(__file__).parents[2] / "examples/operators"


@pytest.mark.timeout(1200)
def test_an_evolution_by_operators_of_ones_own(evolution: Callable[..., Evolution], tmp_path: Path) -> None:
    files = {key: Path(shutil.copy(OWN / name, tmp_path)) for key, name in
             (("parents", "tournament.py"), ("mutation", "dropout.py"))}  # fmt: skip
    method = {
        "generations": 1,
        "parents": {"kind": f"{files['parents']}:Tournament", "size": 3},
        "mutation": {"kind": f"{files['mutation']}:Dropout", "rate": 0.4},
    }
    own = evolution(method=method, place={"fused": False})
    evo = Evolution(bring(own.config, own.store, no_bar))  # as on a cluster, where seeding reads the files from S3
    evo.seeding()
    digests = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}
    for path in files.values():
        path.unlink()  # what was seeded counts, not the user's files
    (model,) = evo.generation()
    evo.build_final()

    child = need_plan(evo.store, 0).children[0]
    assert {key: value for key, value in child.mutation.items() if key != "seed"} == {
        "kind": f"operators/{digests['mutation']}.py:Dropout",
        "rate": 0.4,
    }
    frozen = load_config(evo.store)
    assert frozen.frozen()["method"] == own.config.frozen()["method"]
    assert (
        rebuild(evo.store, frozen, [model], tmp_path / "again", lambda _: None).digest
        == manifest(evo.store, model).digest
    )
    named = trace(evo.store, frozen, [model], pins=()).objects
    assert all(named[f"operators/{digest}.py"] == digest for digest in digests.values())
    assert all(digest in str(collect(evo.store).config.frozen()) for digest in digests.values())  # which reports print

    key = f"operators/{digests['mutation']}.py"
    evo.store.put(key, evo.store.get(key).replace(b"1 - self.rate", b"2 - self.rate"))
    with pytest.raises(IntegrityError, match=f"{key} has sha256"):
        load_config(evo.store)


def test_a_selection_of_ones_own_chooses_parents() -> None:
    """A tournament of all models is won by the best of them, and the next one by the second best."""
    world = World(config({"parents": {"kind": f"{OWN / 'tournament.py'}:Tournament", "size": 99}}, seed=2))
    snapshot = world.step(world.seeded())
    elites = next(archive for archive in snapshot.archives if archive.quality == "db").elites.values()
    averages = {elite.model.id: average(elite.scores) for elite in elites}
    (child,) = planned(world.config, snapshot).children
    assert len(averages) > 2 and child.parents[0] != child.parents[1]
    assert [averages[parent.id] for parent in child.parents] == sorted(averages.values(), reverse=True)[:2]


def test_the_examples_configuration_is_valid_and_what_is_wrong_with_an_operator_is_said(tmp_path: Path) -> None:
    method = load(OWN / "config.yaml").method
    assert (method.parents.kind, method.mutation.kind) == (
        f"{OWN}/tournament.py:Tournament",
        f"{OWN}/dropout.py:Dropout",
    )
    tree = config().model_dump(mode="json", by_alias=True)
    shutil.copy(OWN / "dropout.py", tmp_path)
    for mutation, message in (
        ({"kind": "dropout.py:Dropout", "rate": 1.0}, "method.mutation.rate: must be less than 1"),
        ({"kind": "dropout.py:Dropout", "sigma": 1.0}, "method.mutation.sigma: there is no such setting"),
        (
            {"kind": "dropout.py:Droput"},
            "method.mutation: .*'Droput' in .* is not a subclass of cycleqd.plugins.Mutation",
        ),
        ({"kind": "drop.py:Dropout"}, r"method.mutation: .*cannot be imported \(FileNotFoundError"),
        ({"kind": "dropout"}, "method.mutation: .*there is no mutation 'dropout'; there are gaussian, .*svd"),
    ):
        tree["method"]["mutation"] = mutation
        with pytest.raises(InvalidInputError, match=message):
            parse(tree, "here", tmp_path)
