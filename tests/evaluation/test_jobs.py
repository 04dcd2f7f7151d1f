"""Many jobs in one evaluation: children and tasks advance together, and none changes what another one gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import EvaluationError, InvalidInputError
from cycleqd.evaluation import engines, evaluator
from cycleqd.evaluation.engines import Completion, Engine, Progress, Request, Sampling
from cycleqd.evaluation.evaluator import Evaluation, evaluate, evaluate_jobs
from cycleqd.evaluation.jobs import Job
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace
from tests.adapters import write_adapter
from tests.evaluation.test_evaluator import SAMPLES, SAMPLING, Repeating, Rounds, records, rounds


class Mixing(Repeating):
    """Takes the requests of all jobs in one call."""

    mixes = True


def together(engine: Engine, jobs: Sequence[Job], workers: int = 2) -> dict[int, Evaluation]:
    found: dict[int, Evaluation] = {}
    evaluate_jobs(engine, jobs, lambda number, evaluation: found.update({number: evaluation}), workers=workers)
    return found


def test_an_engine_that_mixes_gets_all_jobs_in_one_call_a_round() -> None:
    engine = Mixing()
    found = together(engine, [Job(rounds(), SAMPLES[:3], SAMPLING), Job(rounds(), SAMPLES[3:], SAMPLING)])
    assert engine.batches == [["2", "word", "0", "overflow", "1"], ["1", "0"], ["0"]]
    assert engine.resets == 1
    for number, samples in enumerate((SAMPLES[:3], SAMPLES[3:])):
        assert records(found[number]) == records(evaluate(Repeating(), rounds(), samples, SAMPLING, workers=1))
    assert [found[number].timings.rounds for number in (0, 1)] == [3, 2]


def test_another_engine_gets_job_after_job() -> None:
    engine = Repeating()
    together(engine, [Job(rounds(), SAMPLES[:3], SAMPLING), Job(rounds(), SAMPLES[3:], SAMPLING)])
    assert engine.batches == [["2", "word", "0"], ["1"], ["0"], ["overflow", "1"], ["0"]]


def test_jobs_wait_until_there_is_room_for_their_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "TOGETHER", 6)
    engine = Mixing()
    together(engine, [Job(rounds(), SAMPLES[:3], SAMPLING) for _ in range(3)])
    first = ["2", "word", "0"]
    assert engine.batches == [[*first, *first], ["1", "1", *first], ["0", "0", "1"], ["0"]]


def test_requests_name_their_adapter_and_keep_jobs_apart() -> None:
    asked: list[Request] = []

    class Asked(Mixing):
        def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
            asked.extend(requests)
            return super().generate(requests, progress)

    warm = Sampling(max_tokens=8, temperature=1.0)
    together(Asked(), [Job(rounds(), SAMPLES[2:3], SAMPLING, "one"), Job(rounds(), SAMPLES[2:3], warm)])
    assert [(r.adapter, r.group, r.sampling) for r in asked] == [("one", 0, SAMPLING), (None, 1, warm)]


def test_a_job_is_finished_while_others_go_on() -> None:
    """The second round of one is not generated before the other has been handed over."""
    handed = threading.Event()

    class Patient(Mixing):
        def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
            if self.batches:
                assert handed.wait(30)
            return super().generate(requests, progress)

    order: list[int] = []

    def finished(number: int, evaluation: Evaluation) -> None:
        order.append(number)
        handed.set()

    jobs = [Job(rounds(), SAMPLES[:1], SAMPLING), Job(rounds(), SAMPLES[1:3], SAMPLING)]
    evaluate_jobs(Patient(), jobs, finished, workers=2)
    assert order == [1, 0]


def test_a_job_is_judged_while_the_next_one_is_generated() -> None:
    """Its verdict ends only once the other job's first round is asked for."""
    asked = threading.Event()

    class Slow(Rounds):
        def verdict(self, episode: Episode) -> Verdict:
            assert asked.wait(30)
            return super().verdict(episode)

    class Telling(Repeating):
        def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
            if self.batches:
                asked.set()
            return super().generate(requests, progress)

    slow = Slow({}, Workspace(Path()))
    found = together(Telling(), [Job(slow, SAMPLES[1:3], SAMPLING), Job(rounds(), SAMPLES[1:3], SAMPLING)], workers=1)
    assert sorted(found) == [0, 1]


def test_a_fault_of_one_job_leaves_those_that_are_finished() -> None:
    bad = rounds(fail=("verdict", "a", EvaluationError("the judge has gone")))
    found: list[int] = []
    with pytest.raises(EvaluationError, match="the judge has gone"):
        evaluate_jobs(
            Repeating(),
            [Job(rounds(), SAMPLES, SAMPLING), Job(bad, SAMPLES, SAMPLING)],
            lambda number, _: found.append(number),
            workers=2,
        )
    assert found == [0]
    assert [episode.closed for episode in bad.episodes] == [1] * len(SAMPLES)


def test_a_failure_to_record_is_passed_on_and_all_episodes_are_closed() -> None:
    def fails(number: int, evaluation: Evaluation) -> None:
        raise InvalidInputError("no space")

    tasks = [rounds(), rounds()]
    with pytest.raises(InvalidInputError, match="no space"):
        evaluate_jobs(Mixing(), [Job(task, SAMPLES, SAMPLING) for task in tasks], fails, workers=2)
    assert [episode.closed for task in tasks for episode in task.episodes] == [1] * 2 * len(SAMPLES)


def test_the_time_of_a_call_is_shared_by_tokens() -> None:
    three = [Sample(name, {"first": "0"}) for name in "abc"]
    found = together(Mixing(), [Job(rounds(), three[:1], SAMPLING), Job(rounds(), three, SAMPLING)], workers=2)
    assert found[1].timings.generating == pytest.approx(3 * found[0].timings.generating)
    for timings in (evaluation.timings for evaluation in found.values()):
        assert timings.total == pytest.approx(timings.generating + sum(timings.samples.values()) / 2)


class Talk(Episode):
    """Three rounds, whatever the model says."""

    def next(self, reply: str) -> list[Message] | None:
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})
        if len(self.replies) == 3:
            return None
        self.messages.append({"role": "user", "content": f"and then, {len(reply)}?"})
        return self.messages


class Talks(Task):
    """Passes no one."""

    def load(self, data: Path) -> list[Sample]:
        return []

    def start(self, sample: Sample) -> Episode:
        return Talk(sample, [{"role": "user", "content": f"{self.settings['opening']} {sample.id}"}])

    def verdict(self, episode: Episode) -> Verdict:
        return Verdict(Outcome.WRONG, "nothing to win")


TALKS = [Talks({"opening": opening}, Workspace(Path())) for opening in ("hello", "tell me about the number")]
NUMBERS = [Sample(f"{number:0{number + 1}d}", {}) for number in range(5)]


@pytest.fixture(scope="module")
def model(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Engine, dict[tuple[int, str | None], str]]:
    """An engine with three children, its batches of about three rows; and the transcripts of each child on each task
    when it is evaluated by itself."""
    folder = tmp_path_factory.mktemp("children")
    children = [write_adapter(folder / str(seed), make_model(0), seed) for seed in range(3)]
    how = engines.EngineSettings(device="cpu", threads=1, batch_tokens=300)
    engine = engines.create("transformers", how)
    engine.adapt(children)
    engine.load(make_model(0), "0")
    pairs = [(task, child) for task in range(2) for child in [None, *(child.digest for child in children)]]
    return engine, {pair: records(together(engine, [job(*pair)])[0]) for pair in pairs}


def job(task: int, child: str | None) -> Job:
    sampling = Sampling(max_tokens=5, temperature=float(task), stop=("never",))
    return Job(TALKS[task], NUMBERS, sampling, child, json.dumps([task, child]))


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_transcripts_do_not_depend_on_what_is_evaluated_beside(
    model: tuple[Engine, dict[tuple[int, str | None], str]], data: st.DataObject
) -> None:
    """Children and tasks shuffled, removed, regrouped into calls, and mixed: the same transcripts, bit for bit.

    Removed are those that were finished before a kill.
    """
    engine, alone = model
    pairs = data.draw(st.lists(st.sampled_from(sorted(alone, key=str)), unique=True, min_size=1))
    cut = data.draw(st.integers(0, len(pairs) - 1))
    mixes = data.draw(st.booleans())
    for group in (pairs[:cut], pairs[cut:]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(engine), "mixes", mixes)
            found = together(engine, [job(*pair) for pair in group], workers=3)
        assert {pair: records(found[number]) for number, pair in enumerate(group)} == {p: alone[p] for p in group}
