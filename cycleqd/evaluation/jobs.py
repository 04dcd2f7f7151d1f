"""Jobs of an evaluation on their way: a model on the samples of a task, and each sample's episode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cycleqd.errors import CycleQDError, EvaluationError
from cycleqd.evaluation.engines import PLAIN, Chat, Completion, Request, Sampling
from cycleqd.evaluation.reasoning import THINK, without_reasoning
from cycleqd.evaluation.sandbox import stable
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict


@dataclass(frozen=True)
class Job:
    """A model on the samples of a task.

    `task` has been entered. `adapter` is the digest of one that the engine knows, None for the loaded model by itself.
    `label` names the job where it is shown how far it is. `reasoning`: what opens and closes the block that is taken
    off replies before the task sees them (`without_reasoning`).
    """

    task: Task
    samples: Sequence[Sample]
    sampling: Sampling
    adapter: str | None = None
    label: str = ""
    chat: Chat = PLAIN
    reasoning: tuple[str, ...] = THINK


@dataclass(frozen=True)
class SampleRecord:
    """What happened to one sample: nothing in it differs between two identical runs.

    `messages` is the conversation as the task has it, `replies` all that the model wrote.
    """

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


@dataclass
class SampleRun:
    """One sample on its way through the loop. `prompt` is what the next round asks; None once the episode is over."""

    job: Job
    sample: Sample
    episode: Episode | None = None
    prompt: Sequence[Message] | None = None
    completions: list[Completion] = field(default_factory=list)
    verdict: Verdict | None = None
    seconds: float = 0.0
    closed: bool = False

    @property
    def task(self) -> Task:
        """The job's."""
        return self.job.task

    @property
    def overflowed(self) -> bool:
        """Whether the last prompt did not fit the context, which ends the episode."""
        return self.completions[-1].finish == "overflow"

    def start(self) -> None:
        """Open the episode.

        Raises:
            EvaluationError: The task's code failed: no reply is to blame.
        """
        with self._timed():
            try:
                self.episode = self.task.start(self.sample)
                self.prompt = self.episode.messages
            except CycleQDError:
                raise
            except Exception as error:
                raise EvaluationError(
                    f"{type(self.task).__name__}.start failed on sample '{self.sample.id}' ({_told(error)}); this is a"
                    " fault of the task's code or set-up, so no score was recorded"
                ) from error

    def step(self) -> None:
        """Give the episode the last reply."""
        assert self.episode is not None  # all were started
        with self._own_outcome("next"):
            reply = without_reasoning(self._written(self.completions[-1]), self.job.reasoning)
            self.prompt = None if self.overflowed else self.episode.next(reply)

    def judge(self) -> None:
        """Reach the verdict, unless there is one, and close the episode."""
        assert self.episode is not None
        try:
            if self.verdict is None:
                with self._own_outcome("verdict"):
                    judge = self.task.overflow if self.overflowed else self.task.verdict
                    self.verdict = judge(self.episode)
        finally:
            with self._own_outcome("close"):
                self.close()

    def close(self) -> None:
        """Close the episode unless that has been done."""
        if self.episode is not None and not self.closed:
            self.closed = True
            self.episode.close()

    def _written(self, completion: Completion) -> str:
        """A reply with the beginning that was written for the model."""
        return self.job.chat.prefill + completion.text

    def record(self) -> SampleRecord:
        """What happened, once there is a verdict."""
        assert self.episode is not None and self.verdict is not None
        return SampleRecord(
            id=self.sample.id,
            group=self.sample.group,
            messages=tuple(self.job.chat.messages(self.episode.messages)),
            replies=tuple(self._written(one) for one in self.completions if one.finish != "overflow"),
            finish=tuple(completion.finish for completion in self.completions),
            outcome=self.verdict.outcome,
            reason=self.verdict.reason,
            detail=self.verdict.detail,
            prompt_tokens=sum(completion.prompt_tokens for completion in self.completions),
            tokens=sum(completion.tokens for completion in self.completions),
        )

    @contextmanager
    def _own_outcome(self, what: str) -> Iterator[None]:
        """Times the task's work on the sample. Any exception but one of infrastructure becomes the sample's outcome."""
        with self._timed():
            try:
                yield
            except CycleQDError:
                raise
            except Exception as error:
                self.prompt = None
                self.verdict = Verdict(Outcome.FAULT, f"{type(self.task).__name__}.{what} failed: {_told(error)}")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def _told(error: Exception) -> str:
    """An exception in one line, without what differs from run to run."""
    return f"{type(error).__name__}: {stable(str(error))}"[:300]


@dataclass
class JobRun:
    """A job on its way; `number` tells it apart. `live` are the runs that the next round asks for."""

    job: Job
    number: int
    runs: Sequence[SampleRun]
    opening: Sequence[Future[None]] = ()
    live: Sequence[SampleRun] = ()
    unjudged: int = 0
    generating: float = 0.0
    rounds: int = 0

    def requests(self) -> list[Request]:
        """What the next round asks."""
        wanted = self.job
        return [
            Request(run.prompt or (), wanted.sampling, wanted.adapter, self.number, wanted.chat) for run in self.live
        ]

    def take(self, completions: Sequence[Completion]) -> None:
        """Give the live runs the round's replies.

        Args:
            completions: One a request.

        Raises:
            EvaluationError: No first prompt fits the context.
        """
        self.rounds += 1
        for run, completion in zip(self.live, completions, strict=True):
            run.completions.append(completion)
        if self.rounds == 1 and all(run.overflowed for run in self.live):
            longest = max(completion.prompt_tokens for completion in completions)
            raise EvaluationError(
                f"no prompt of {type(self.job.task).__name__} fits the context (the longest has {longest} tokens), so"
                " no score was recorded; raise evaluation.max_context or take models with a longer context"
            )
