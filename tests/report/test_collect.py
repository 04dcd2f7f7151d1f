"""The report of a real little evolution: tiny models, real S3 and MLflow, stages called as the pipelines call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cycleqd.errors import ConflictError
from cycleqd.report.collect import collect
from cycleqd.report.write import run
from cycleqd.search import state as states
from cycleqd.search.records import Scored
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, model_ref
from cycleqd.storage.finalising import compared, finalised
from cycleqd.storage.results import need_result, sealed
from tests.evolution import TASKS, Evolution
from tests.ledger import ledger


def test_a_report_is_what_the_records_say(evolution: Callable[..., Evolution], tmp_path: Path) -> None:
    made = evolution(
        tasks={"three": {"report_only": True}},
        models={"experts": {"c": {"task": "one"}}},
        method={"final": {"kind": "softmax"}},
    )
    with pytest.raises(ConflictError, match="no HEAD yet"):
        made.seed()
        collect(made.store)
    made.seeding()
    made.generation()
    made.generation()
    before = collect(made.store)
    assert before.recipe == () and before.final_snapshot is None
    assert before.results["test"] == {} and set(before.results["search"]) >= {"base", "expert-a"}

    made.aggregate()
    wanted = ["base", "expert-a", "expert-b", "expert-c", "naive", "final", before.best]
    made.evaluate(wanted, "search")
    made.evaluate(wanted, "test", list(TASKS))
    store, data = made.store, collect(made.store)
    state = current(store)[1]
    assert data.state == state and data.final_snapshot == 2
    assert data.recipe == tuple((ref.id, beta) for ref, beta in states.final_recipe(made.config, state))
    for split, tasks in (("search", ("one", "two")), ("test", TASKS)):
        for model in wanted:
            tallies = data.results[split][model]
            assert set(tallies) == set(tasks)
            for task, tally in tallies.items():
                recorded = need_result(store, layout.evaluation(model, task, split))["outputs"]
                assert (tally.score, tally.total) == (recorded["score"], recorded["count"])
    assert data.watched == ("three",)
    children = {name for name in (*dict(data.recipe), data.best) if name.startswith("g")}
    assert children <= set(data.children)

    cost = data.cost
    size = model_ref_size(made)
    assert cost.evaluations == 4 * 2 + 2 * 2 + len({"naive", "final"}) * 2 + len(set(wanted)) * 3
    assert cost.samples == 8 * cost.evaluations
    assert cost.written == pytest.approx(size * (4 + 2 + 2), rel=0.01)
    assert {"seed", "merge", "evaluate", "update archives", "aggregate"} <= set(cost.seconds)
    assert cost.stored == sum(store.list("").values())

    shown: dict[str, tuple[float | None, int]] = {}

    @contextmanager
    def bar(what: str, total: float | None) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        shown[what] = total, sum(done)

    page = run(store, tmp_path, bar)
    pictures, records = len(list(tmp_path.glob("*.png"))), sum(key.endswith("/run.json") for key in store.list(""))
    assert shown["drawing"] == (pictures, pictures)
    assert records >= (shown["reading records"][0] or 0) == shown["reading records"][1] > 0
    assert page.read_text().count("<figure>") == len(list(tmp_path.glob("*.png")))
    named = store.get_json(layout.REPORT_MODELS)["models"]
    assert set(named) >= {"final", "naive", data.best, *dict(data.recipe)}


def test_a_final_model_that_is_one_elite_has_the_aggregate_beside_it(evolution: Callable[..., Evolution]) -> None:
    made = evolution(method={"final": {"kind": "best"}})
    made.seeding()
    made.generation()
    made.aggregate()
    store, state = made.store, current(made.store)[1]
    scored = compared(made.config, state, None)
    assert scored == ["base", "expert-a", "expert-b", "expert-c", "naive", "aggregated", "final"]
    for split in ("search", "test"):
        made.evaluate(scored, split)
    assert finalised(made.config, store, state)
    data = collect(store)
    best = states.best_living(state).model
    assert data.recipe == ((best.id, 1.0),) and data.scored("search", "final") == data.scored("search", best.id)
    recipe = made.config.method.final.aggregate(state)
    inputs = need_result(store, layout.stage("aggregated", "make"))["inputs"]
    assert [(part["id"], beta) for part, beta in zip(inputs["models"], inputs["coefficients"], strict=True)] == [
        (ref.id, beta) for ref, beta in recipe
    ]
    assert [row.id for row in data.rows] == scored
    assert data.rows[-1].label == f"CycleQD, best single model ({best.id})"
    assert set(store.get_json(layout.FINAL_PLAN)["models"]) == {best.id, *(ref.id for ref, _ in recipe)}
    tags = ledger(made.name).runs["model:aggregated"]["tags"]
    assert tags["cycleqd.parents"] == ",".join(ref.id for ref, _ in recipe)


def model_ref_size(made: Evolution) -> int:
    """Bytes of the base's checkpoint."""
    return int(need_result(made.store, layout.SEED)["outputs"]["models"]["base"]["size"])


@pytest.mark.parametrize("aggregate_wins", [True, False])
def test_the_better_of_aggregate_and_best_single_model_is_the_final_one(
    evolution: Callable[..., Evolution], monkeypatch: pytest.MonkeyPatch, aggregate_wins: bool
) -> None:
    """The aggregate's scores are put in the single model's place or below it; all else is as in a run."""
    made = evolution(seed=5)  # its aggregate is of two models
    made.seeding()
    made.generation()
    made.aggregate()
    store, state = made.store, current(made.store)[1]
    assert not finalised(made.config, store, state)
    rivals = compared(made.config, state, None)
    best = states.best_living(state)
    seeded = ["base", "expert-a", "expert-b", "expert-c"]
    assert rivals == list(dict.fromkeys([*seeded, best.model.id, "naive", "aggregated"]))
    made.evaluate(rivals)
    scores = dict.fromkeys(state.tasks, 1.0 if aggregate_wins else 0.0)
    aggregated = Scored(model_ref(store, "aggregated"), scores)
    with monkeypatch.context() as patch:
        patch.setattr("components.aggregate.stage.scored_models", lambda *_: ([aggregated], {}))
        scored = made.choose()
    other = best.model.id if aggregate_wins else "aggregated"
    assert set(scored) == {*seeded, "naive", other, "final"} and scored[-1] == "final"
    for split in ("search", "test"):
        assert not finalised(made.config, store, state)
        made.evaluate(scored, split)
    assert finalised(made.config, store, state)
    data = collect(store)
    if aggregate_wins:
        assert model_ref(store, "final").digest == model_ref(store, "aggregated").digest
    else:
        assert data.recipe == ((best.model.id, 1.0),)
    assert [row.id for row in data.rows][-1] == "final"
    label = "CycleQD, aggregated" if aggregate_wins else f"CycleQD, best single model ({best.model.id})"
    assert data.rows[-1].label == label
    assert set(ledger(made.name).runs) >= {"model:naive", "model:aggregated", "model:final"}


def test_the_final_model_is_not_chosen_by_an_aggregate_of_older_archives(evolution: Callable[..., Evolution]) -> None:
    made = evolution()
    made.seeding()
    made.aggregate()
    made.evaluate(["aggregated"])
    made.generation()
    with pytest.raises(ConflictError, match="has moved since the aggregate was built; finalise again"):
        made.choose()
    made.build_final()


def test_an_older_final_models_scores_do_not_count(evolution: Callable[..., Evolution]) -> None:
    made = evolution(method={"final": {"kind": "softmax"}})
    made.seeding()
    made.aggregate()
    made.evaluate(["final"], "search")
    store = made.store
    assert collect(store).scored("search", "final") is not None
    body = need_result(store, layout.stage("final", "make"))
    body["outputs"]["checkpoint"]["files"]["config.json"]["sha256"] = "0" * 64
    store.put(layout.result(layout.stage("final", "make")), sealed(body))
    assert model_ref(store, "final").digest != body["outputs"]["checkpoint"]["digest"]
    assert collect(store).scored("search", "final") is None
