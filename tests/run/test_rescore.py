"""`rescore`: scores of two versions of a task's method never meet in one archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import ConflictError
from cycleqd.evaluation import staged
from cycleqd.evaluation.task import Episode, Outcome, Task, Verdict
from cycleqd.run import rescore
from cycleqd.run.audit import trace, verify
from cycleqd.search import state as states
from cycleqd.search.rebuilt import replayed
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, load_config, load_state, need_head
from cycleqd.storage.results import need_result
from cycleqd.storage.settings import Settings
from tests.evolution import Evolution

METHOD = {"generations": 4, "children": 2, "grid": {"bins": 2}}


def newer(kind: type[Task]) -> type[Task]:
    """The task's next version: what passed is wrong, and what was wrong passes."""

    class Newer(kind):  # type: ignore[misc, valid-type]
        method_version = 2

        def verdict(self, episode: Episode) -> Verdict:
            passed = super().verdict(episode).outcome == Outcome.PASSED
            return Verdict(Outcome.WRONG if passed else Outcome.PASSED, "judged by the newer version")

    return Newer


def judge_task_two_anew(patch: pytest.MonkeyPatch) -> None:
    load = staged.load_task

    def loaded(reference: str, root: Path) -> type[Task]:
        kind = load(reference, root)
        return newer(kind) if reference.startswith("tasks/two/") else kind

    patch.setattr(staged, "load_task", loaded)


def scored_anew(evo: Evolution) -> list[tuple[str, str]]:
    return rescore.rescore(Settings.from_environment(), evo.store, load_config(evo.store))


@pytest.mark.timeout(900)
def test_scores_of_two_versions_never_meet(
    evolution: Callable[..., Evolution], monkeypatch: pytest.MonkeyPatch
) -> None:
    evo = evolution(seed=3, method=METHOD)
    evo.seeding()
    for _ in range(3):
        evo.generation()
    items = evo.select(3)
    for item in items:
        evo.merge(item)
    store, old = evo.store, current(evo.store)[1]
    bytes_before = {key: store.get(key) for key in store.list("archives")}
    judge_task_two_anew(monkeypatch)
    with pytest.raises(ConflictError, match=r"task 'two' is scored by method version 2.1 now.*`cycleqd rescore`"):
        evo.evaluate(["g000003-c00"])

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "move_head", _killed)
        with pytest.raises(KeyboardInterrupt):
            scored_anew(evo)
    evo.evaluate(["g000003-c00", "g000003-c01"])  # as the base is scored now
    with pytest.raises(ConflictError, match="being scored anew; wait for `cycleqd rescore`, or run it again"):
        evo.update(3)
    assert need_head(store).position == (3, 0)

    scored_anew(evo)
    head, state = current(store)
    assert head.position == (3, 1) and state == load_state(store, 3, 1) and state.rescored == (old.digest,)
    kept = {line.model.id for line in state.history}
    gone = {line.model.id for line in old.history} - kept
    assert gone and state.forgotten == len(gone) and state.evaluations == len(old.children)
    _all_scores_are_of(state, evo, version=2)
    assert {key: store.get(key) for key in bytes_before} == bytes_before, "older snapshots stay"
    for line in old.history:
        if line.model.id in kept:
            assert state.axes.keys() == old.axes.keys()
            new = next(one for one in state.history if one.model.id == line.model.id)
            assert (new.scores["one"], new.scores["three"]) == (line.scores["one"], line.scores["three"])
            assert new.scores["two"] == pytest.approx(1 - line.scores["two"])

    contents = {key: store.get(key) for key in store.list("")}
    assert scored_anew(evo) == []
    assert {key: store.get(key) for key in store.list("")} == contents, "nothing is left to do"
    evo.generation(2)
    assert need_head(store).position == (3, 1), "a generation of the past is repeated for nothing"
    evo.update(3)
    head, state = current(store)
    assert head.position == (4, 0) and {"g000003-c00", "g000003-c01"} <= {line.model.id for line in state.history}
    assert state.evaluations == 8 and state.rescored == ()
    _all_scores_are_of(state, evo, version=2)
    config = load_config(store)
    for model in (next(iter(kept - {"expert-a", "expert-b", "expert-c"}), "expert-a"), *list(gone)[:1]):
        found = trace(store, config, [model], pins=())
        assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    evo.build_final()
    assert list(replayed(config, state))[-1].archives == state.archives


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _all_scores_are_of(state: states.State, evo: Evolution, version: int) -> None:
    """What the snapshot holds is what the records say, and these are of one version."""
    for line in state.history:
        for task in state.tasks:
            body = need_result(evo.store, layout.evaluation(line.model.id, task, "search"))
            assert body["outputs"]["score"] == line.scores[task]
            assert body["inputs"]["task_version"] == (version if task == "two" else 1)
