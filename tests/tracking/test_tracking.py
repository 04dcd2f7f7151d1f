"""MLflow: the family tree can be read from it alone; runs are created once; failures are one sentence."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from mlflow import MlflowClient

from cycleqd.errors import ConflictError, UnavailableError
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_child, model_ref
from cycleqd.storage.layout import child_generation
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from cycleqd.tracking.tracker import KEY, Ids, NewRun, Tracker
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
    assert [path for path in artifacts if "/" in path and not path.startswith("report/")] == [
        *(f"archives/{n:06d}.json" for n in range(4)),
        *(f"heatmaps/{n:06d}.png" for n in range(4)),
    ]
    assert {"report/report.html", "report/scores-test.png", "report/archives.png"} <= set(artifacts)
    assert {run["status"] for run in runs.values()} == {"FINISHED"}
    assert len({run["name"] for run in runs.values()}) == len(runs)


def test_times_are_those_of_the_records(grown: Evolution) -> None:
    client, store = MlflowClient(), grown.store
    (experiment,) = client.search_experiments(filter_string=f"name = '{grown.name}'")
    runs = {run.data.tags[KEY]: run.info for run in client.search_runs([experiment.experiment_id])}

    def record(folder: str, moment: str) -> int:
        return int(store.get_json(layout.run(folder))[moment])

    assert runs["evolution"].start_time == runs["model:base"].start_time == record(layout.SEED, "started")
    assert runs["model:g000001-c01"].start_time == record(layout.generation(1), "started")
    assert runs["generation:000001"].end_time == record(layout.update(1), "finished")
    last = max(record(layout.evaluation("final", task, "test"), "finished") for task in grown.config.tasks)
    assert runs["model:final"].end_time == last
    assert runs["evolution"].end_time == max(run.end_time for run in runs.values())


@pytest.mark.parametrize(("model", "split"), [("expert-a", "search"), ("g000001-c01", "search"), ("final", "test")])
def test_average_and_worst_task_have_errors(grown: Evolution, model: str, split: str) -> None:
    run = ledger(grown.name).runs[f"model:{model}"]
    found = {task: need_result(grown.store, layout.evaluation(model, task, split)) for task in grown.config.tasks}
    scores = {task: body["outputs"]["score"] for task, body in found.items()}
    errors = {task: body["outputs"]["standard_error"] for task, body in found.items()}
    worst = min(scores, key=lambda task: scores[task])
    assert {name: run["metrics"][f"{split}_{name}"] for name in ("average", "average_stderr", "worst")} == {
        "average": [(0, pytest.approx(sum(scores.values()) / 3))],
        "average_stderr": [(0, pytest.approx(sum(e**2 for e in errors.values()) ** 0.5 / 3))],
        "worst": [(0, scores[worst])],
    }
    assert run["metrics"][f"{split}_worst_stderr"] == [(0, errors[worst])]
    assert run["tags"][f"cycleqd.{split}_worst_task"] == worst


def test_data_are_datasets_with_digests(grown: Evolution) -> None:
    runs = ledger(grown.name).runs
    seeded = need_result(grown.store, layout.SEED)["outputs"]["tasks"]
    for name, context in (("evolution", "evaluation"), ("model:final", "test"), ("model:g000001-c01", "search")):
        used = [one for one in runs[name]["datasets"] if one[3] == context]
        suffix = "" if name == "evolution" else f"/{context}"
        digests = {f"{task}{suffix}": entry["data"]["digest"] for task, entry in seeded.items()}
        assert {one[0]: one[1] for one in used} == {task: sha256[:36] for task, sha256 in digests.items()}
        assert {one[0]: json.loads(one[2])["sha256"] for one in used} == digests


def test_a_checkpoint_is_a_logged_model_that_leads_to_s3(grown: Evolution) -> None:
    client, runs = MlflowClient(), ledger(grown.name).runs
    for model in ("base", "expert-b", "g000001-c01", "final"):
        (linked,) = runs[f"model:{model}"]["models"]
        assert linked[:3] == (model, "READY", model_ref(grown.store, model).digest)
        assert dict(linked[3])["search_average"] == runs[f"model:{model}"]["metrics"]["search_average"][0][1]
    version = client.get_model_version_by_alias(grown.name, "best")
    assert version.source == grown.store.url(layout.checkpoint("final"))
    (run,) = client.search_runs([ledger(grown.name).experiment], f"tags.`{KEY}` = 'model:final'")
    assert version.run_id == run.info.run_id
    parents = need_result(grown.store, layout.stage("final", "make"))["inputs"]["models"]
    assert version.tags["cycleqd.parents"] == ",".join(parent["id"] for parent in parents)
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert logged.tags["cycleqd.checkpoint"] == version.source
    assert client.list_logged_model_artifacts(logged.model_id) == []
    assert len(client.search_model_versions(f"name = '{grown.name}'")) == 1


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
    wanted = [NewRun("evolution", "name", "about", 1), NewRun("model:base", "base", "about", 1, parent="evolution")]
    first = tracker.create_runs(store, "seed/mlflow.json", experiment, wanted, Ids(experiment))
    store.delete(["seed/mlflow.json"])  # as if killed before the ids were stored
    assert tracker.create_runs(store, "seed/mlflow.json", experiment, wanted, Ids(experiment)) == first
    assert len(ledger(store.evolution).runs) == 2


def test_of_two_creators_one_wins_with_its_whole_family(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower looks for runs before the other has any; the other is killed before it stores ids, and rerun."""
    store = Store(store.client, store.bucket, f"evolution-{store.bucket}")
    killed, slower = Tracker(Settings.from_environment()), Tracker(Settings.from_environment())
    experiment = killed.experiment(store, "about")
    wanted = [NewRun("evolution", "n", "d", 1), NewRun("model:base", "base", "d", 1, parent="evolution")]

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
        return tracker.create_runs(store, "a.json", experiment, [NewRun("evolution", "n", "d", 1)], Ids(experiment))

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
            store, f"{number}.json", experiment, [NewRun(f"model:{number}", "n", "d", 1)], Ids(experiment)
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
