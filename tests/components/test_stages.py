"""The stages together: repeated, grouped, raced; and what they refuse before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components.update_archives.stage import move_head
from cycleqd.errors import (
    ConflictError,
    CycleQDError,
    EvaluationError,
    IntegrityError,
    InvalidInputError,
    UnavailableError,
)
from cycleqd.evaluation.scoring import Missing, Scoring, evaluate_all
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.evolution import Head, find_head, find_plan, load_config, need_head
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, need_result, once, sealed, write_result
from cycleqd.storage.settings import Settings
from tests.evolution import Evolution
from tests.ledger import ledger

Make = Callable[..., Evolution]


def contents(store: Store, folder: str = "") -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list(folder)}


@pytest.mark.timeout(900)
def test_running_everything_again_changes_nothing(grown: Evolution) -> None:
    bucket, tracked = contents(grown.store), ledger(grown.name)
    grown.seeding()
    for generation in range(3):
        grown.generation(generation)
    grown.build_final()
    grown.evaluate(["final", "naive"], "test")
    assert contents(grown.store) == bucket
    assert ledger(grown.name).runs == tracked.runs


def test_every_placement_gives_the_same_bytes(evolution: Make) -> None:
    first = evolution(method={"children": 2})
    first.seeding()
    item_a, item_b = first.select(0)
    apart = Evolution(first.config.model_copy(update={"place": first.config.place.model_copy(update={"fused": False})}))
    first.merge(item_a)
    fused = contents(first.store, "generations/000000/children/g000000-c00/checkpoint")
    first.store.delete_prefix("generations/000000/children/g000000-c00")
    for item in (item_a, item_b):
        apart.merge(item)
        apart.mutate(item)
    assert contents(first.store, "generations/000000/children/g000000-c00/checkpoint") == fused
    first.evaluate(["g000000-c00", "g000000-c01"])
    together = scores(first.store)
    for child in ("g000000-c00", "g000000-c01"):
        first.store.delete_prefix(f"generations/000000/children/{child}/evaluations")
        for task in reversed(first.config.search_tasks):
            first.evaluate([child], tasks=[task])
    assert scores(first.store) == together
    first.update(0)
    assert not [key for key in first.store.list("generations") if "/merged/" in key]


def test_a_child_that_was_made_in_the_other_number_of_tasks_is_not_made_again(evolution: Make) -> None:
    """As when an evolution of an earlier version, which fused, is interrupted and goes on."""
    fused = evolution(method={"children": 2})
    fused.seeding()
    place = fused.config.place.model_copy(update={"fused": False})
    apart = Evolution(fused.config.model_copy(update={"place": place}))
    first, second = fused.select(0)
    fused.merge(first)
    apart.merge(second)
    apart.mutate(second)
    made = contents(fused.store, "generations/000000/children")
    for item in (first, second):
        fused.merge(item)
        apart.merge(item)
        apart.mutate(item)
    assert contents(fused.store, "generations/000000/children") == made


def scores(store: Store) -> dict[str, bytes]:
    found = contents(store, "generations/000000/children")
    return {k: v for k, v in found.items() if "/evaluations/" in k and not k.endswith("run.json")}


def test_two_claimants_plan_once(evolution: Make) -> None:
    evo = evolution()
    evo.seeding()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(evo.select, [0, -1])
    assert first == second == ['{"child":"g000000-c00","generation":0}']
    assert len([run for run in ledger(evo.name).runs if run.startswith("model:g000000")]) == 1
    with pytest.raises(ConflictError, match=r"generation 3 .* starts from snapshot 3, but HEAD is at 0"):
        evo.select(3)
    assert find_plan(evo.store, 3) is None


def test_past_the_end_the_last_generation_is_repeated_and_changes_nothing(evolution: Make) -> None:
    """What a run of several generations does when a stop rule ends the search inside it, and a schedule's next run."""
    evo = evolution(method={"stop": {"evaluations": 1}})
    evo.seeding()
    assert evo.generation(0) == ["g000000-c00"]
    bucket, tracked = contents(evo.store), ledger(evo.name)
    for number in (1, 2, -1):
        assert evo.generation(number) == ["g000000-c00"]
    assert contents(evo.store) == bucket
    assert ledger(evo.name).runs == tracked.runs


def test_of_two_updates_at_once_one_wins(evolution: Make) -> None:
    evo = evolution()
    evo.seeding()
    for item in evo.select(0):
        evo.merge(item)
    evo.evaluate(["g000000-c00"])

    def update(_: int) -> CycleQDError | None:
        try:
            evo.update(0)
        except ConflictError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        assert None in list(pool.map(update, range(2)))
    assert need_head(evo.store).snapshot == 1
    history = [len(points) for points in ledger(evo.name).runs["evolution"]["metrics"].values()]
    assert max(history) == 2  # snapshots 0 and 1, each once
    evo.update(0)


def test_of_two_that_compute_the_same_the_first_ones_records_stand(store: Store) -> None:
    """The slower began before the other recorded, or fails because the other has moved on."""

    def slower(fails: bool) -> JSON:
        def compute(clock: Clock) -> JSON:
            once(store, "work", "name", 1, {"in": 1}, lambda _: {"out": "first"})
            if fails:
                raise ConflictError("HEAD has moved")
            clock.started += 10_000  # as if the other had ended long before
            return {"out": "second"}

        return once(store, "work", "name", 1, {"in": 1}, compute)

    for fails in (False, True):
        store.delete_prefix("work")
        assert slower(fails) == {"out": "first"} == need_result(store, "work")["outputs"]
        run = store.get_json(layout.run("work"))
        assert run["started"] <= run["finished"]
    with pytest.raises(ConflictError):
        once(store, "other", "name", 1, {}, fail)
    assert once(store, "work", "name", 1, {"in": 2}, lambda _: {"out": 2}) == {"out": 2}  # from something else


def fail(_: Clock) -> JSON:
    raise ConflictError("nothing is recorded")


def test_what_another_process_scored_meanwhile_is_not_scored_again(
    evolution: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower found nothing recorded when it began."""
    evo = evolution()
    evo.seed()
    scored: list[str] = []
    score, settings, config = Scoring.score, Settings.from_environment(), load_config(evo.store)

    def slow(self: Scoring, bench: Any, model: str, found: Any, pairs: Sequence[Missing], adapters: Any = None) -> None:
        scored.append(model)
        if len(scored) == 1:
            evaluate_all(
                settings, self.store, config, evo.config.place, ["base", "expert-a"], config.search_tasks, "search"
            )
        left = sum(not pair.recorded(self.store) for pair in pairs)
        scored.append(f"{left} of {model}")
        score(self, bench, model, found, pairs, adapters)

    monkeypatch.setattr(Scoring, "score", slow)
    evo.evaluate(["base", "expert-a", "expert-b"])
    inner = ["base", "3 of base", "expert-a", "3 of expert-a"]
    assert scored == ["base", *inner, "0 of base", "expert-a", "0 of expert-a", "expert-b", "3 of expert-b"]
    evo.evaluate(["base", "expert-a"])
    ledger(evo.name)  # asserts that no time was logged twice


def test_head_moves_one_step_and_never_sideways(store: Store) -> None:
    move_head(store, Head(0, "a"))
    move_head(store, Head(1, "b"))
    move_head(store, Head(0, "a"))
    with pytest.raises(ConflictError, match="'snapshot': 1, 'sha256': 'b'"):
        move_head(store, Head(1, "other"))
    with pytest.raises(ConflictError, match="cannot be moved"):
        move_head(store, Head(3, "c"))
    found = find_head(store)
    assert found is not None and (found.snapshot, found.sha256) == (1, "b")


def test_another_configuration_is_refused_by_key(evolution: Make) -> None:
    evo = evolution()
    evo.seed()
    changed = evolution(method={"grid": {"bins": 5}}, evaluation={"batch_tokens": 99})
    with pytest.raises(ConflictError, match=r"different: evaluation\.batch_tokens, method\.grid\.bins"):
        changed.seed()
    tree = evo.tree
    tree["tasks"] = dict(reversed(tree["tasks"].items()))
    reordered = Evolution(type(evo.config).model_validate(tree))
    with pytest.raises(ConflictError, match="the order of its keys"):
        reordered.seed()


def test_seeding_again_takes_what_a_file_leaves_out_as_it_was_frozen(evolution: Make) -> None:
    """As after a release with another default: the file never named the value that was in force at seeding."""
    evo = evolution(method={"crossover": {"mu": 0.75}})
    evo.seed()
    tree = evo.config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    del tree["method"]["crossover"]["mu"]
    before = contents(evo.store)
    evo.seed(tree)
    after = {key: value for key, value in contents(evo.store).items() if key in before or "parameters/" not in key}
    assert after == before
    assert load_config(evo.store).method.crossover.mu == 0.75


def test_the_order_of_tasks_survives_in_s3(evolution: Make) -> None:
    evo = evolution()
    evo.seed()
    assert list(evo.store.get_json("config.json")["tasks"]) == ["one", "two", "three"]


def test_seeding_refuses_before_it_writes(evolution: Make, tmp_path: Path, tiny_models: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_models / "base" / "config.json").read_text())
    for changes, sentence in (
        ({"tasks": {"two": {"data": "/nowhere/data.json"}}}, "task 'two': there is no /nowhere/data.json"),
        ({"models": {"experts": {"a": {"path": str(tmp_path)}}}}, "has no \\*.safetensors files"),
    ):
        evo = evolution(**changes)
        with pytest.raises(InvalidInputError, match=sentence):
            evo.seed()
        assert {key.split("/")[0] for key in evo.store.list("")} == {"parameters"}


def test_a_task_that_misses_something_is_refused_before_a_model_is_loaded(evolution: Make, tmp_path: Path) -> None:
    plugin = tmp_path / "unready.py"
    source = Path(__file__).parents[1] / "data" / "letters.py"
    plugin.write_text(
        source.read_text() + '\n    def preflight(self) -> list[str]:\n        return ["install the moon"]\n'
    )
    evo = evolution(tasks={"two": {"class": f"{plugin}:Letters"}})
    evo.seed()
    with pytest.raises(UnavailableError, match="task 'two': install the moon"):
        evo.evaluate(["base"])
    assert not [key for key in evo.store.list("models/base") if "evaluations" in key]
    assert not list(tmp_path.glob("cache/[!.]*"))


def test_an_evaluation_error_leaves_no_score_and_stops_the_generation(evolution: Make) -> None:
    """The context is too short for any prompt: a model that could not be asked has not failed at the task."""
    evo = evolution(evaluation={"max_context": 16})
    evo.seed()
    models = ["base", *(f"expert-{name}" for name in evo.config.models.experts)]
    with pytest.raises(
        EvaluationError, match=r"no prompt of Letters fits the context .* raise evaluation\.max_context"
    ):
        evo.evaluate(models)
    assert not [key for key in evo.store.list("models") if "evaluations" in key]
    with pytest.raises(IntegrityError, match=r"evaluations/one/search/result\.json is missing"):
        evo.update(-1)
    assert find_head(evo.store) is None


def test_scores_of_different_engines_are_not_compared(evolution: Make) -> None:
    evo = evolution()
    evo.seeding()
    for item in evo.select(0):
        evo.merge(item)
    evo.evaluate(["g000000-c00"])
    folder = "generations/000000/children/g000000-c00/evaluations/two/search"
    body = need_result(evo.store, folder)
    outputs = {**body["outputs"], "engine": "vllm"}
    evo.store.put(layout.result(folder), sealed({**body, "outputs": outputs}))
    with pytest.raises(ConflictError, match=r"'g000000-c00' and the base were scored differently on 'two' .*vllm"):
        evo.update(0)
    assert need_head(evo.store).snapshot == 0


def test_a_score_of_another_checkpoint_is_refused(evolution: Make) -> None:
    evo = evolution()
    evo.seeding()
    for item in evo.select(0):
        evo.merge(item)
    evo.evaluate(["g000000-c00"])
    folder = "generations/000000/children/g000000-c00/evaluations/one/search"
    body = need_result(evo.store, folder)
    write_result(evo.store, folder, "evaluate", 1, {**body["inputs"], "model": "0" * 64}, body["outputs"], Clock())
    with pytest.raises(IntegrityError, match="scores a model of digest 0000"):
        evo.update(0)


def test_unknown_names_are_refused(grown: Evolution) -> None:
    with pytest.raises(InvalidInputError, match=r"no tasks \['four'\]"):
        grown.evaluate(["base"], tasks=["four"])
    with pytest.raises(InvalidInputError, match="'nobody' is not a model id"):
        grown.evaluate(["nobody"])
    with pytest.raises(InvalidInputError, match="split is 'train'"):
        grown.evaluate(["base"], "train")
    with pytest.raises(InvalidInputError, match="has no child 'g000000-c09'"):
        grown.merge(json.dumps({"generation": 0, "child": "g000000-c09"}))
    with pytest.raises(InvalidInputError, match="is not a loop item"):
        grown.merge("g000000-c00")
