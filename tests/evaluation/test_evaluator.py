"""The evaluation loop, with a scripted engine in place of a model and with a tiny real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError, InvalidInputError, UnavailableError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Completion, Progress, Request, Sampling
from cycleqd.evaluation.evaluator import Evaluation, evaluate
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace
from tests.scripted import Scripted

SAMPLING = Sampling(max_tokens=8)


class Repeating(Scripted):
    """Replies with the last message's text; "overflow" anywhere in it overflows. It keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.resets = 0

    def reply(self, conversation: Sequence[Message]) -> str:
        return conversation[-1]["content"]

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        asked = [self.reply(request.conversation) for request in requests]
        self.batches.append(asked)
        if progress:
            progress(len(asked))
        return [
            Completion("", "overflow", 99, 0) if "overflow" in text else Completion(text, "stop", 2, 1)
            for text in asked
        ]

    def reset(self) -> None:
        self.resets += 1


class Countdown(Episode):
    """Asks for "n", then "n-1", down to "0"; a word is over at once."""

    def __init__(self, task: Rounds, sample: Sample) -> None:
        super().__init__(sample, [{"role": "user", "content": sample.record["first"]}])
        self.task, self.closed = task, 0

    def next(self, reply: str) -> list[Message] | None:
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})
        self.task.fail_at("next", self.sample)
        if not reply.isdigit() or reply == "0":
            return None
        self.messages.append({"role": "user", "content": str(int(reply) - 1)})
        return self.messages

    def close(self) -> None:
        self.closed += 1
        self.task.fail_at("close", self.sample)


class Rounds(Task):
    """Passes what counts down to 0; `settings["fail"]` = (where, sample id, error) plants a fault."""

    def __init__(self, settings: dict[str, object], workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self.episodes: list[Countdown] = []
        self.threads: set[int] = set()

    def load(self, data: Path) -> list[Sample]:
        return []

    def fail_at(self, where: str, sample: Sample) -> None:
        self.threads.add(threading.get_ident())
        place, sample_id, error = self.settings.get("fail", ("", "", None))
        if (where, sample.id) == (place, sample_id):
            raise error

    def start(self, sample: Sample) -> Episode:
        self.fail_at("start", sample)
        episode = Countdown(self, sample)
        self.episodes.append(episode)
        return episode

    def verdict(self, episode: Episode) -> Verdict:
        self.fail_at("verdict", episode.sample)
        time.sleep(0.001 * (len(episode.sample.id) % 3))
        passed = episode.replies[-1] == "0"
        outcome = Outcome.PASSED if passed else Outcome.FORMAT
        return Verdict(outcome, "counted down" if passed else "no number", {"rounds": len(episode.replies)})


def rounds(**settings: object) -> Rounds:
    return Rounds(settings, Workspace(Path()))


SAMPLES = [
    Sample("a", {"first": "2"}, "numbers"),
    Sample("bb", {"first": "word"}, "words"),
    Sample("ccc", {"first": "0"}, "numbers"),
    Sample("dddd", {"first": "overflow"}, "words"),
    Sample("e", {"first": "1"}),
]


def records(evaluation: Evaluation) -> str:
    return "\n".join(json.dumps(record.to_json()) for record in evaluation.records)


def test_episodes_advance_together_and_each_round_is_one_batch() -> None:
    engine = Repeating()
    evaluation = evaluate(engine, rounds(), SAMPLES, SAMPLING, workers=3)
    assert engine.batches == [["2", "word", "0", "overflow", "1"], ["1", "0"], ["0"]]
    assert engine.resets == 1
    assert evaluation.timings.rounds == 3
    assert set(evaluation.timings.samples) == {s.id for s in SAMPLES}


def test_records_and_what_follows_from_them() -> None:
    evaluation = evaluate(Repeating(), rounds(), SAMPLES, SAMPLING, workers=2)
    assert [r.id for r in evaluation.records] == [s.id for s in SAMPLES]
    assert evaluation.score == 3 / 5
    assert evaluation.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)
    assert evaluation.counts == {"passed": 3, "wrong": 0, "error": 1, "time-out": 0, "format": 1, "fault": 0}
    assert evaluation.groups == {"numbers": 1.0, "words": 0.0}
    assert evaluation.tokens == 7
    assert evaluation.records[0].to_json() == {
        "id": "a",
        "group": "numbers",
        "messages": [
            {"role": role, "content": content}
            for content in ("2", "1", "0")
            for role in ("user", "assistant")
        ],
        "replies": ["2", "1", "0"],
        "finish": ["stop", "stop", "stop"],
        "outcome": "passed",
        "reason": "counted down",
        "detail": {"rounds": 3},
        "prompt_tokens": 6,
        "tokens": 3,
    }  # fmt: skip


def test_an_overflow_ends_the_episode_without_asking_the_task() -> None:
    task = rounds(fail=("verdict", "dddd", RuntimeError()))
    record = evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=2).records[3]
    assert (record.outcome, record.reason, record.replies) == (Outcome.ERROR, "context overflow", ())


def test_a_task_may_judge_what_overflows() -> None:
    class Lenient(Rounds):
        def overflow(self, episode: Episode) -> Verdict:
            return Verdict(Outcome.PASSED, f"{len(episode.replies)} replies")

    record = evaluate(Repeating(), Lenient({}, Workspace(Path())), SAMPLES, SAMPLING, workers=2).records[3]
    assert (record.outcome, record.reason) == (Outcome.PASSED, "0 replies")


def test_prompts_that_all_overflow_are_an_error_and_not_a_score_of_0() -> None:
    task, samples = rounds(), [Sample("a", {"first": "overflow"}), Sample("b", {"first": "overflow too"})]
    with pytest.raises(EvaluationError, match=r"no prompt of Rounds fits .*longest has 99 tokens.*max_context"):
        evaluate(Repeating(), task, samples, SAMPLING, workers=2)
    assert [episode.closed for episode in task.episodes] == [1, 1]


def test_the_same_records_again_and_with_any_number_of_workers() -> None:
    found = {records(evaluate(Repeating(), rounds(), SAMPLES, SAMPLING, workers=w)) for w in (1, 1, 2, 8)}
    assert len(found) == 1


def test_no_more_threads_than_workers() -> None:
    task = rounds()
    evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=2)
    assert len(task.threads) <= 2


def test_progress_adds_up_to_the_replies_and_the_samples() -> None:
    seen: dict[str, tuple[int, list[int]]] = {}

    def counting(where: str, what: str, total: int) -> Progress:
        seen[what] = total, []
        return seen[what][1].append

    evaluate(Repeating(), rounds(), SAMPLES, SAMPLING, workers=2, counting=counting)
    assert list(seen) == ["samples judged", "replies of round 1", "replies of round 2", "replies of round 3"]
    assert [total for total, _ in seen.values()] == [5, 5, 2, 1]
    for total, steps in seen.values():
        assert sum(steps) == total and 0 not in steps


def test_each_episode_is_closed_once() -> None:
    task = rounds()
    evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=4)
    assert [episode.closed for episode in task.episodes] == [1] * len(SAMPLES)


@pytest.mark.parametrize("where", ["start", "next", "verdict"])
def test_infrastructure_that_is_missing_is_never_a_score(where: str) -> None:
    task = rounds(fail=(where, "ccc", UnavailableError("no database")))
    with pytest.raises(UnavailableError, match="no database"):
        evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=2)
    assert {episode.closed for episode in task.episodes} == {1}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("evaluate")]


def test_an_episode_that_cannot_be_opened_is_no_replys_fault() -> None:
    task = rounds(fail=("start", "ccc", ValueError("boom")))
    with pytest.raises(EvaluationError, match=r"Rounds.start failed on sample 'ccc' \(ValueError: boom\)"):
        evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=2)
    assert {episode.closed for episode in task.episodes} == {1}


@pytest.mark.parametrize("where", ["next", "verdict", "close"])
@pytest.mark.parametrize(
    "error", [ValueError("at 0x7f00\nboom\x1b"), RecursionError(), MemoryError(), KeyError("\ud800")]
)
def test_an_exception_on_a_reply_is_that_samples_outcome_alone(where: str, error: Exception) -> None:
    task = rounds(fail=(where, "ccc", error))
    evaluation = evaluate(Repeating(), task, SAMPLES, SAMPLING, workers=2)
    assert {episode.closed for episode in task.episodes} == {1}
    innocent = evaluate(Repeating(), rounds(), SAMPLES, SAMPLING, workers=2).records
    for record, expected in zip(evaluation.records, innocent, strict=True):
        assert record == expected or record.id == "ccc"
    faulty = evaluation.records[2]
    assert (faulty.outcome, evaluation.counts["fault"]) == (Outcome.FAULT, 1)
    assert faulty.reason.startswith(f"Rounds.{where} failed: {type(error).__name__}")
    assert "\n" not in faulty.reason and "7f00" not in faulty.reason and faulty.reason.isprintable()
    json.dumps(faulty.to_json()).encode()


def test_a_fault_of_the_engine_is_passed_on_and_episodes_are_closed() -> None:
    class Dead(Repeating):
        def generate(self, *args: object, **kwargs: object) -> list[Completion]:
            raise EvaluationError("the engine died")

    task = rounds()
    with pytest.raises(EvaluationError, match="the engine died"):
        evaluate(Dead(), task, SAMPLES, SAMPLING, workers=2)
    assert [episode.closed for episode in task.episodes] == [1] * len(SAMPLES)


def test_no_samples_is_no_score() -> None:
    with pytest.raises(InvalidInputError, match="Rounds has no samples"):
        evaluate(Repeating(), rounds(), [], SAMPLING, workers=1)


def test_a_tiny_model_gives_the_same_bytes_with_any_number_of_workers(make_model: Callable[..., Path]) -> None:
    engine = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1))
    engine.load(make_model(0), "0")
    first = evaluate(engine, rounds(), SAMPLES, SAMPLING, workers=1)
    assert first.tokens > 0
    engine.load(make_model(1), "1")
    evaluate(engine, rounds(), SAMPLES, SAMPLING, workers=2)
    engine.load(make_model(0), "0")
    assert records(evaluate(engine, rounds(), SAMPLES, SAMPLING, workers=4)) == records(first)
