"""The evaluation loop: one engine, one task, its samples, round by round.

All live episodes advance together and each round is one batch of the engine, so what the engine sees depends on nothing
but the model, the task and the samples. The task's own work (starting, stepping, judging) runs in threads; verdicts run
while the next round is being generated.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cycleqd.errors import CycleQDError, EvaluationError, InvalidInputError
from cycleqd.evaluation.engines.engine import Completion, Engine, Progress, Sampling
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict

Counting = Callable[[str, int], Progress]
"""Called with what is going to be counted and its total, gives a function to be called with how much more is done."""


@dataclass(frozen=True)
class SampleRecord:
    """What happened to one sample: nothing in it differs between two identical runs."""

    id: str
    group: str
    messages: tuple[Message, ...]
    replies: tuple[str, ...]
    finish: tuple[str, ...]
    outcome: Outcome
    reason: str
    detail: Mapping[str, Any]
    prompt_tokens: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, in a fixed order of keys."""
        plain: dict[str, Any] = {**vars(self), "outcome": self.outcome.value, "detail": dict(self.detail)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


@dataclass(frozen=True)
class Timings:
    """Seconds, kept apart from the records because they differ from run to run.

    `samples`: task work of each sample id (start, steps, verdict), without generating. `generating` and `total`: wall
    time inside the engine and of the whole evaluation.
    """

    samples: Mapping[str, float]
    generating: float
    total: float
    rounds: int


@dataclass(frozen=True)
class Evaluation:
    """The records of one model on one task, in the order of the samples, and what follows from them."""

    records: tuple[SampleRecord, ...]
    timings: Timings

    @property
    def score(self) -> float:
        """The share of samples passed, in [0, 1]."""
        return _share(self.records)

    @property
    def standard_error(self) -> float:
        """Of the score, as a binomial share: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.score * (1 - self.score) / len(self.records))

    @property
    def counts(self) -> dict[str, int]:
        """Samples by outcome; every outcome is named."""
        found = Counter(record.outcome for record in self.records)
        return {outcome.value: found[outcome] for outcome in Outcome}

    @property
    def groups(self) -> dict[str, float]:
        """The score of each group of samples, by name; empty when the task names no groups."""
        names = sorted({record.group for record in self.records} - {""})
        return {name: _share([record for record in self.records if record.group == name]) for name in names}

    @property
    def tokens(self) -> int:
        """Tokens generated for all samples together."""
        return sum(record.tokens for record in self.records)


def _share(records: Sequence[SampleRecord]) -> float:
    return sum(record.outcome is Outcome.PASSED for record in records) / len(records)


@dataclass
class _Run:
    """One sample on its way through the loop. `prompt` is what the next round asks; None once the episode is over."""

    sample: Sample
    episode: Episode | None = None
    prompt: Sequence[Message] | None = None
    completions: list[Completion] = field(default_factory=list)
    verdict: Verdict | None = None
    seconds: float = 0.0
    closed: bool = False

    @property
    def overflowed(self) -> bool:
        return self.completions[-1].finish == "overflow"

    def close(self) -> None:
        """Close the episode unless that has been done."""
        if self.episode is not None and not self.closed:
            self.closed = True
            self.episode.close()

    def record(self) -> SampleRecord:
        assert self.episode is not None and self.verdict is not None  # called when the run is over
        return SampleRecord(
            id=self.sample.id,
            group=self.sample.group,
            messages=tuple(self.episode.messages),
            replies=tuple(self.episode.replies),
            finish=tuple(completion.finish for completion in self.completions),
            outcome=self.verdict.outcome,
            reason=self.verdict.reason,
            detail=self.verdict.detail,
            prompt_tokens=sum(completion.prompt_tokens for completion in self.completions),
            tokens=sum(completion.tokens for completion in self.completions),
        )


def evaluate(
    engine: Engine,
    task: Task,
    samples: Sequence[Sample],
    sampling: Sampling,
    *,
    workers: int,
    counting: Counting = lambda what, total: lambda more: None,
) -> Evaluation:
    """Score the engine's current model on `samples` of a task that has been entered; `workers` threads do its work.

    An episode whose prompt no longer fits the context ends as an error, "context overflow", without a verdict of the
    task. `counting` shows the replies of each round and the verdicts. Raises EvaluationError, with no score, when the
    task's code fails unexpectedly or no sample's first prompt fits the context; any CycleQDError of task or engine is
    passed on. Every episode that was started is closed exactly once, whatever happens.
    """
    if not samples:
        raise InvalidInputError(f"{type(task).__name__} has no samples; a score needs at least one")
    began = time.perf_counter()
    runs = [_Run(sample) for sample in samples]
    engine.reset()
    with _pool(workers, runs) as pool:
        for started in as_completed([pool.submit(_start, task, run) for run in runs]):
            started.result()
        generating, rounds = _rounds(engine, task, runs, sampling, pool, counting)
    timings = Timings({r.sample.id: r.seconds for r in runs}, generating, time.perf_counter() - began, rounds)
    return Evaluation(tuple(run.record() for run in runs), timings)


def _rounds(
    engine: Engine,
    task: Task,
    runs: Sequence[_Run],
    sampling: Sampling,
    pool: ThreadPoolExecutor,
    counting: Counting,
) -> tuple[float, int]:
    """Generate and step until no episode is live; returns seconds spent generating and the number of rounds."""
    live, judging = list(runs), list[Future[None]]()
    generating, rounds, reported = 0.0, 0, 0
    progress = counting("samples judged", len(runs))
    while live:
        began = time.perf_counter()
        rounds += 1
        replies = counting(f"replies of round {rounds}", len(live))
        completions = engine.generate([run.prompt or () for run in live], sampling, replies)
        generating += time.perf_counter() - began
        if all(completion.finish == "overflow" for completion in completions) and rounds == 1:
            longest = max(completion.prompt_tokens for completion in completions)
            raise EvaluationError(
                f"no prompt of {type(task).__name__} fits the context (the longest has {longest} tokens), so no"
                " score was recorded; raise evaluation.max_context or take models with a longer context"
            )
        for run, completion in zip(live, completions, strict=True):
            run.completions.append(completion)
        steps = {pool.submit(_step, task, run): run for run in live}
        for step in as_completed(steps):
            step.result()
            if steps[step].prompt is None:
                judging.append(pool.submit(_judge, task, steps[step]))
        live = [run for run in live if run.prompt is not None]
        reported += _report(progress, _judged(judging) - reported)
    for _ in as_completed(judging):
        reported += _report(progress, _judged(judging) - reported)
    return generating, rounds


def _judged(judging: Sequence[Future[None]]) -> int:
    """How many verdicts are there; raises what one of them raised."""
    done = [future for future in judging if future.done()]
    for future in done:
        future.result()
    return len(done)


def _report(progress: Progress, judged: int) -> int:
    if judged:
        progress(judged)
    return judged


def _start(task: Task, run: _Run) -> None:
    with _task_code(task, run, "start"):
        run.episode = task.start(run.sample)
        run.prompt = run.episode.messages


def _step(task: Task, run: _Run) -> None:
    with _task_code(task, run, "next"):
        assert run.episode is not None  # all were started
        run.prompt = None if run.overflowed else run.episode.next(run.completions[-1].text)


def _judge(task: Task, run: _Run) -> None:
    with _task_code(task, run, "verdict"):
        assert run.episode is not None
        try:
            overflow = Verdict(Outcome.ERROR, "context overflow")
            run.verdict = overflow if run.overflowed else task.verdict(run.episode)
        finally:
            run.close()


@contextmanager
def _task_code(task: Task, run: _Run, what: str) -> Iterator[None]:
    """Times the task's work on a sample and names task and sample when it fails in a way it did not foresee."""
    began = time.perf_counter()
    try:
        yield
    except CycleQDError:
        raise
    except Exception as error:
        raise EvaluationError(
            f"{type(task).__name__}.{what} failed on sample '{run.sample.id}' ({type(error).__name__}: {error}); "
            f"this is a fault of the task's code or set-up, so no score was recorded"
        ) from error
    finally:
        run.seconds += time.perf_counter() - began


@contextmanager
def _pool(workers: int, runs: Sequence[_Run]) -> Iterator[ThreadPoolExecutor]:
    """Worker threads; on leaving, also after a failure, no thread is at work and no episode is open."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluate")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for run in runs:
            with suppress(Exception):  # only after a failure, which is the error to show
                run.close()
