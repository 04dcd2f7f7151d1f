"""The evaluation loop: one engine, and jobs (a model on the samples of a task), round by round.

All live episodes of a job advance together. An engine that mixes gets those of many jobs in one call a round; another
gets job after job, so that what it sees of one depends on nothing but the model, the task and the samples. The task's
own work (starting, stepping, judging) runs in threads; verdicts run while the next round, or job, is being generated.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.engines import Engine, Progress, Sampling
from cycleqd.evaluation.jobs import Job, JobRun, SampleRecord, SampleRun
from cycleqd.evaluation.task import Outcome, Sample, Task

Counting = Callable[[str, str, int], Progress]
"""Called with where and what is going to be counted and its total; what it gives is called with how much more is done.
"""

TOGETHER = 512
"""Episodes of different jobs that are open at a time: they fill a GPU's batches, and each may hold processes."""


@dataclass(frozen=True)
class Timings:
    """Seconds, kept apart from the records because they differ from run to run.

    `samples`: task work of each sample id (start, steps, verdict), without generating. `generating`: wall time inside
    the engine; calls that served several jobs are shared among them by the tokens they got. `total`: wall time of the
    evaluation; of one of several jobs its generating and its samples' work divided by the workers, so that all totals
    add up to about the time that they took together.
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


def evaluate(
    engine: Engine,
    task: Task,
    samples: Sequence[Sample],
    sampling: Sampling,
    *,
    workers: int,
    counting: Counting = lambda where, what, total: lambda more: None,
) -> Evaluation:
    """Score the engine's current model on one task: `evaluate_jobs` with one job.

    Args:
        engine: It has a model.
        task: It has been entered.
        samples: At least one.
        sampling: How replies are generated.
        workers: Threads of the task's work.
        counting: Shows the replies of each round and the verdicts.

    Raises:
        EvaluationError: See `evaluate_jobs`.
    """
    found: list[Evaluation] = []
    jobs = [Job(task, samples, sampling)]
    evaluate_jobs(engine, jobs, lambda _, evaluation: found.append(evaluation), workers=workers, counting=counting)
    return found[0]


def evaluate_jobs(
    engine: Engine,
    jobs: Sequence[Job],
    finished: Callable[[int, Evaluation], None],
    *,
    workers: int,
    counting: Counting = lambda where, what, total: lambda more: None,
) -> None:
    """Score the engine's current model, and adapters of it, on tasks.

    An episode whose prompt no longer fits the context ends there; the task says what becomes of it (`Task.overflow`).
    Where the task's code fails on a reply, that sample's outcome is a fault, with the reason, and the others go on.
    Every episode that was started is closed exactly once, whatever happens.

    Args:
        engine: It has a model, and knows the jobs' adapters.
        jobs: Each has at least one sample.
        finished: Called with each job's place among the jobs as soon as its last verdict is there, from a worker
            thread, never twice at once.
        workers: Threads of the tasks' work.
        counting: Shows the replies of each round and the verdicts.

    Raises:
        EvaluationError: A task could not open an episode, or no first prompt of a job fits its context; no score then,
            but of jobs that are finished. Any CycleQDError of tasks, engine and `finished` is passed on.
    """
    for job in jobs:
        if not job.samples:
            raise InvalidInputError(f"{type(job.task).__name__} has no samples; a score needs at least one")
    works = [JobRun(job, number, [SampleRun(job, sample) for sample in job.samples]) for number, job in enumerate(jobs)]
    engine.reset()
    began = time.perf_counter()

    def done(work: JobRun) -> None:
        spent = sum(run.seconds for run in work.runs)
        total = time.perf_counter() - began if len(works) == 1 else work.generating + spent / workers
        timings = Timings({r.sample.id: r.seconds for r in work.runs}, work.generating, total, work.rounds)
        finished(work.number, Evaluation(tuple(run.record() for run in work.runs), timings))

    with _pool(workers, [run for work in works for run in work.runs]) as pool:
        _Loop(engine, pool, counting, done).run(works)


class _Loop:
    """Advances jobs round by round; `done` is called with each when it has all verdicts."""

    def __init__(
        self, engine: Engine, pool: ThreadPoolExecutor, counting: Counting, done: Callable[[JobRun], None]
    ) -> None:
        self._engine, self._pool, self._counting, self._done = engine, pool, counting, done
        self._judging: list[Future[None]] = []
        self._lock = Lock()
        self._judged: Progress = lambda more: None

    def run(self, works: Sequence[JobRun]) -> None:
        """All jobs to their last verdict."""
        self._judged = self._counting(_where(works), "samples judged", sum(len(work.runs) for work in works))
        waiting, active = list(works), list[JobRun]()
        while waiting or active:
            while waiting and self._fits(waiting[0], active):
                active.append(self._opened(waiting.pop(0)))
            if waiting and not self._engine.mixes:
                self._open(waiting[0])  # now, or its episodes would wait for all verdicts of this job
            self._round(active)
            active = [work for work in active if work.live]
            self._raise_failures()
        for verdict in as_completed(self._judging):
            verdict.result()

    def _fits(self, work: JobRun, active: Sequence[JobRun]) -> bool:
        """Whether a job may begin beside others."""
        live = sum(len(other.live) for other in active)
        return not active or (self._engine.mixes and live + len(work.runs) <= TOGETHER)

    def _open(self, work: JobRun) -> None:
        """Begin to open a job's episodes, once."""
        work.opening = work.opening or [self._pool.submit(run.start) for run in work.runs]

    def _opened(self, work: JobRun) -> JobRun:
        """The job with its episodes open."""
        self._open(work)
        for started in as_completed(work.opening):
            started.result()
        work.live, work.unjudged = work.runs, len(work.runs)
        return work

    def _round(self, works: Sequence[JobRun]) -> None:
        """Generate a reply for every live episode, then step those; verdicts of what is over by then are begun."""
        began = time.perf_counter()
        asked = [work.requests() for work in works]
        everything = [request for requests in asked for request in requests]
        number = max(work.rounds for work in works) + 1
        replies = self._counting(_where(works), f"replies of round {number}", len(everything))
        completions = iter(self._engine.generate(everything, replies))
        spent = time.perf_counter() - began
        given = [[next(completions) for _ in requests] for requests in asked]
        tokens = [sum(completion.tokens for completion in part) for part in given]
        for work, part, count in zip(works, given, tokens, strict=True):
            work.generating += spent * (count / sum(tokens) if sum(tokens) else 1 / len(works))
            work.take(part)
        steps = {self._pool.submit(run.step): (work, run) for work in works for run in work.live}
        for step in as_completed(steps):
            step.result()
            work, run = steps[step]
            if run.prompt is None:
                self._judging.append(self._pool.submit(self._judge, work, run))
        for work in works:
            work.live = [run for run in work.live if run.prompt is not None]

    def _judge(self, work: JobRun, run: SampleRun) -> None:
        run.judge()
        with self._lock:
            self._judged(1)
            work.unjudged -= 1
            if not work.unjudged:
                self._done(work)

    def _raise_failures(self) -> None:
        """Raise what a verdict has raised."""
        ended = [verdict for verdict in self._judging if verdict.done()]
        self._judging = [verdict for verdict in self._judging if not verdict.done()]
        for verdict in ended:
            verdict.result()


def _where(works: Sequence[JobRun]) -> str:
    return works[0].job.label if len(works) == 1 else f"{len(works)} evaluations"


@contextmanager
def _pool(workers: int, runs: Sequence[SampleRun]) -> Iterator[ThreadPoolExecutor]:
    """Worker threads; on leaving, also after a failure, no thread is at work and no episode is open."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluate")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for run in runs:
            with suppress(Exception):  # only after a failure, which is the error to show
                run.close()
