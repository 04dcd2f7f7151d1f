"""MLflow: the family tree can be read from it alone; runs are created once; failures are one sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from cycleqd.errors import ConflictError, UnavailableError
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_child
from cycleqd.storage.layout import child_generation
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tracker import Ids, NewRun, Tracker
from tests.evolution import Evolution
from tests.ledger import ledger

Tree = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Model → its parents' ids and digests."""
LEAVES = ("final", "aggregated", "g000002-c01")


def tree_of_mlflow(name: str) -> Tree:
    runs, found, open_ = ledger(name).runs, Tree(), list(LEAVES)
    while open_:
        model = open_.pop()
        tags = runs[f"model:{model}"]["tags"]
        parents = tuple(tags["cycleqd.parents"].split(",")) if "cycleqd.parents" in tags else ()
        digests = tuple(tags["cycleqd.parent_digests"].split(",")) if parents else ()
        assert tags["cycleqd.kind"] in ("base", "expert") or parents
        for parent, digest in zip(parents, digests, strict=True):
            assert runs[f"model:{parent}"]["tags"]["cycleqd.digest"] == digest
        found[model] = (parents, digests)
        open_ += [parent for parent in parents if parent not in found]
    return found


def tree_of_s3(store: Store) -> Tree:
    found, open_ = Tree(), list(LEAVES)
    while open_:
        model = open_.pop()
        generation = child_generation(model)
        if generation is not None:
            parents = find_child(store, model, generation).parents
            found[model] = (tuple(p.id for p in parents), tuple(p.digest for p in parents))
        elif model in LEAVES:
            made = need_result(store, f"models/{model}/make")["inputs"]["models"]
            found[model] = (tuple(p["id"] for p in made), tuple(p["digest"] for p in made))
        else:
            found[model] = ((), ())
        open_ += [parent for parent in found[model][0] if parent not in found]
    return found


def test_the_family_tree_is_in_mlflow_alone(grown: Evolution) -> None:
    tree = tree_of_mlflow(grown.name)
    assert tree == tree_of_s3(grown.store)
    assert any(model.startswith("g") for model in tree) and any(model.startswith("expert-") for model in tree)


def test_runs_are_nested_and_complete(grown: Evolution) -> None:
    runs = ledger(grown.name).runs
    assert {key: run["parent"] for key, run in runs.items() if not key.startswith("model:g")} == {
        "evolution": None,
        **{f"model:expert-{name}": "evolution" for name in "abc"},
        **{f"model:{name}": "evolution" for name in ("base", "naive", "aggregated", "final")},
        **{f"generation:{number:06d}": "evolution" for number in range(3)},
    }
    child = runs["model:g000001-c01"]
    assert child["parent"] == "generation:000001" and child["name"] == "g000001-c01"
    curves = runs["evolution"]["metrics"]
    assert [step for step, _ in sorted(curves["best_average"])] == [0, 1, 2, 3]
    artifacts = [path for path, _ in runs["evolution"]["artifacts"]]
    assert "config.json" in artifacts
    assert [path for path in artifacts if "/" in path] == [
        *(f"archives/{n:06d}.json" for n in range(4)),
        *(f"heatmaps/{n:06d}.png" for n in range(4)),
    ]
    assert {run["status"] for run in runs.values()} == {"FINISHED"}


@pytest.mark.parametrize(("model", "split"), [("g000001-c01", "search"), ("final", "test")])
def test_score_error_and_every_outcome_are_on_the_models_run(grown: Evolution, model: str, split: str) -> None:
    found = ledger(grown.name).runs[f"model:{model}"]["metrics"]
    for task in grown.config.search_tasks:
        result = need_result(grown.store, layout.evaluation(model, task, split))["outputs"]
        assert sum(result["counts"].values()) == result["count"] > 0
        expected = {f"{split}_outcomes/{task}/{outcome}": count for outcome, count in result["counts"].items()}
        expected |= {f"{split}_score/{task}": result["score"], f"{split}_stderr/{task}": result["standard_error"]}
        assert {name: found[name] for name in expected} == {name: [(0, value)] for name, value in expected.items()}
        assert {name.rpartition("/")[2] for name in expected} >= {"passed", "wrong", "error", "time-out", "format"}


@pytest.mark.parametrize(("model", "split"), [("g000001-c01", "search"), ("final", "test")])
def test_every_group_and_their_average_are_on_the_models_run(grown: Evolution, model: str, split: str) -> None:
    found = ledger(grown.name).runs[f"model:{model}"]["metrics"]
    for task in grown.config.search_tasks:
        groups = need_result(grown.store, layout.evaluation(model, task, split))["outputs"]["groups"]
        assert list(groups) == ["x", "y"]
        assert [found[f"{split}_groups/{task}/{name}"] for name in "xy"] == [[(0, groups[name])] for name in "xy"]
        assert found[f"{split}_group_average/{task}"] == [(0, pytest.approx((groups["x"] + groups["y"]) / 2))]


def test_a_run_without_a_stored_id_is_taken_over(store: Store) -> None:
    store = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    tracker = Tracker(Settings.from_environment())
    experiment = tracker.experiment(store, "about")
    wanted = [NewRun("evolution", "name", "about"), NewRun("model:base", "base", "about", parent="evolution")]
    first = tracker.create_runs(store, "seed/mlflow.json", experiment, wanted, Ids(experiment))
    store.delete(["seed/mlflow.json"])  # as if killed before the ids were stored
    assert tracker.create_runs(store, "seed/mlflow.json", experiment, wanted, Ids(experiment)) == first
    assert len(ledger(store.evolution).runs) == 2


def test_of_two_creators_one_wins_with_its_whole_family(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower looks for runs before the other has any; the other is killed before it stores ids, and rerun."""
    store = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    killed, slower = Tracker(Settings.from_environment()), Tracker(Settings.from_environment())
    experiment = killed.experiment(store, "about")
    wanted = [NewRun("evolution", "n", "d"), NewRun("model:base", "base", "d", parent="evolution")]

    def create(tracker: Tracker) -> Ids:
        return tracker.create_runs(store, "a.json", experiment, wanted, Ids(experiment))

    def killed_before_storing(*_: object) -> bool:
        raise KeyboardInterrupt

    def after_the_other(*args: Any, **kwargs: Any) -> Any:
        race.undo()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store, "create", killed_before_storing)
            create(killed)
        return slower.client.create_run(*args, **kwargs)

    with monkeypatch.context() as race:
        race.setattr(slower.client, "create_run", after_the_other)
        winner = create(slower)
    assert create(killed) == winner
    assert {run.info.run_id for run in slower.client.search_runs([experiment])} == set(winner.runs.values())
    assert ledger(store.evolution).runs["model:base"]["parent"] == "evolution"


def test_the_slower_of_two_creators_gives_its_runs_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    faster, slower = Tracker(Settings.from_environment()), Tracker(Settings.from_environment())
    experiment = faster.experiment(store, "about")
    won: list[Ids] = []

    def create(tracker: Tracker) -> Ids:
        return tracker.create_runs(store, "a.json", experiment, [NewRun("evolution", "n", "d")], Ids(experiment))

    def after_the_other(*args: Any, **kwargs: Any) -> Any:
        race.undo()
        won.append(create(faster))
        return slower.client.create_run(*args, **kwargs)

    with monkeypatch.context() as race:
        race.setattr(slower.client, "create_run", after_the_other)
        assert [create(slower)] == won
    assert [run.info.run_id for run in slower.client.search_runs([experiment])] == list(won[0].runs.values())


def test_two_that_log_the_same_at_once_both_succeed(store: Store) -> None:
    store = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    trackers = [Tracker(Settings.from_environment()) for _ in range(2)]
    experiment = trackers[0].experiment(store, "about")
    for number in range(15):
        run = trackers[0].create_runs(
            store, f"{number}.json", experiment, [NewRun(f"model:{number}", "n", "d")], Ids(experiment)
        )
        params, barrier = {f"p{i}": i for i in range(10)}, Barrier(2)

        def log(tracker: Tracker, run_id: str, params: dict[str, int], barrier: Barrier) -> None:
            barrier.wait()
            tracker.log(run_id, time=1, params=params, metrics={"m": 1.0}, tags={"t": 1})

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(log, one, run.runs[f"model:{number}"], params, barrier) for one in trackers]
            assert [end.result() for end in ends] == [None, None]
        logged = ledger(store.evolution).runs[f"model:{number}"]
        assert logged["params"] == {f"p{i}": str(i) for i in range(10)} and logged["metrics"] == {"m": [(0, 1.0)]}
    with pytest.raises(UnavailableError, match="p0"):
        trackers[0].log(run.runs["model:14"], time=1, params={"p0": "another"})


def test_an_experiment_of_another_bucket_is_refused(store: Store) -> None:
    mine = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    tracker = Tracker(Settings.from_environment())
    assert tracker.experiment(mine, "about") == tracker.experiment(mine, "about")
    with pytest.raises(ConflictError, match=f"belongs to s3://{store.bucket}/evolution"):
        tracker.experiment(Store(store.client, "elsewhere", mine.evolution), "about")


def test_an_unreachable_server_is_one_sentence(
    environment: dict[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = replace(Settings.from_environment(environment), tracking="http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"MLflow at http://127\.0\.0\.1:9 failed .*check MLFLOW_TRACKING_URI"):
        Tracker(settings).experiment(store, "about")
