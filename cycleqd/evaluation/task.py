"""The plug-in interface of a task: one file, one class, named in the config (plug-ins import it from cycleqd.plugins).

A task turns a data file into samples, a sample into an episode (a conversation with the model, of one round or many),
and a finished episode into a verdict. The evaluator does everything else: engines, batching, workers, time-outs,
transcripts, scores. Worked example, complete:

    class Echo(Task):
        method_version = 1

        def load(self, data: Path) -> list[Sample]:
            return [Sample(id=str(i), record={"word": w}) for i, w in enumerate(data.read_text().split())]

        def start(self, sample: Sample) -> Episode:
            return SingleTurn(sample, [{"role": "user", "content": f"Repeat: {sample.record['word']}"}])

        def verdict(self, episode: Episode) -> Verdict:
            passed = episode.replies[-1].strip() == episode.sample.record["word"]
            return Verdict(Outcome.PASSED if passed else Outcome.WRONG, "compared the reply with the word")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypedDict

from cycleqd.loading import load_class


class Message(TypedDict):
    """One turn of a conversation, in the form chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Sample:
    """One item of a task.

    `id` is unique within the task and stable across runs: splits, subsets and seeds are derived from it. `group` names
    a category whose own score is logged as well (AgentBench's SELECT, INSERT, UPDATE), empty for none.
    """

    id: str
    record: Mapping[str, Any]
    group: str = ""


class Outcome(StrEnum):
    """How an episode ended. Only PASSED counts towards the score."""

    PASSED = "passed"
    WRONG = "wrong"
    ERROR = "error"  # the model's code, command or statement failed, or the context overflowed
    TIMEOUT = "time-out"
    FORMAT = "format"  # no answer in the required form
    FAULT = "fault"  # the task's code failed on this reply, which therefore has no verdict


@dataclass(frozen=True)
class Verdict:
    """The judgement of one episode. `reason` is one line, free of anything that differs between two identical runs.

    `detail` holds further facts worth keeping per sample (for MBPP+, whether the base tests passed), JSON-serialisable.
    """

    outcome: Outcome
    reason: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the outcome is PASSED, the only one that counts towards the score."""
        return self.outcome is Outcome.PASSED


class Episode(ABC):
    """A conversation in progress.

    `messages` is the conversation as the model saw it, growing; `replies` the model's raw texts so far. The evaluator
    asks the engine with `messages`, passes the text to `next`, and repeats until `next` returns None.
    """

    def __init__(self, sample: Sample, messages: Sequence[Message]) -> None:
        self.sample = sample
        self.messages: list[Message] = list(messages)
        self.replies: list[str] = []

    @abstractmethod
    def next(self, reply: str) -> list[Message] | None:
        """Take the model's reply; return the whole conversation for the next round, None when the episode is over.

        Args:
            reply: The model's raw text.
        """

    def close(self) -> None:  # noqa: B027 -- most episodes hold nothing
        """Release what the episode holds (a shell, a database). Called exactly once, whatever happened."""


class SingleTurn(Episode):
    """An episode of one question and one reply."""

    def next(self, reply: str) -> None:
        """Keep the reply, which ends the episode."""
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})


@dataclass(frozen=True)
class Workspace:
    """What the evaluator lends to a task: a private scratch folder (removed afterwards) and its worker threads."""

    scratch: Path
    workers: int = 1


class Task(ABC):
    """A benchmark. Construct with the task's `settings` from the config; use as a context manager.

    `start`, `Episode.next` and `verdict` of different episodes are called from `workspace.workers` threads at once;
    calls for one episode never overlap. Raise `cycleqd.errors.CycleQDError` for a broken set-up; that stops the stage
    and is never a score. Anything the model did wrong is a Verdict. Any other exception of `next` or `verdict` is the
    outcome FAULT of that sample alone, unless it meets every sample.
    """

    own_modules: ClassVar[str] = "cycleqd.evaluation.benchmarks.{}.task"

    method_version: int = 1
    """Raise by hand when verdicts may change for the same replies: scores of the old version no longer match."""

    def __init__(self, settings: Mapping[str, Any], workspace: Workspace) -> None:
        self.settings = settings
        self.workspace = workspace

    def preflight(self) -> list[str]:
        """Everything missing on this machine (programs, users, name spaces), one sentence each with the way to get it.

        Called before a model is loaded. Empty when the task can run.
        """
        return []

    @classmethod
    def in_pods(cls, settings: Mapping[str, Any]) -> list[str]:
        """What of these settings the pods of a usual cluster cannot run, one sentence each.

        Shown before a run there is started, when neither a pod nor the data is at hand.

        Args:
            settings: The task's settings, as configured.
        """
        return []

    @classmethod
    def memory(cls, settings: Mapping[str, Any], workers: int) -> int:
        """The most bytes that what the task runs for a model may hold at a time, by its limits.

        Args:
            settings: The task's settings, as configured.
            workers: Samples that are judged at a time.
        """
        return 0

    def __enter__(self) -> Self:
        """Start what all episodes share (a database server). Pairs with `__exit__`."""
        return self

    def __exit__(  # noqa: B027 -- most tasks share nothing
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and remove what `__enter__` started, also after a failure."""

    @abstractmethod
    def load(self, data: Path) -> Sequence[Sample]:
        """Read the task's samples, always in the same order.

        Args:
            data: A file or folder: the copy of what the configuration names as `data`.
        """

    @abstractmethod
    def start(self, sample: Sample) -> Episode:
        """Open an episode; its `messages` is the first prompt.

        Args:
            sample: One of `load`.
        """

    @abstractmethod
    def verdict(self, episode: Episode) -> Verdict:
        """Judge an episode.

        Args:
            episode: One of `start` that is over; it has at least one reply.
        """

    def overflow(self, episode: Episode) -> Verdict:
        """Judge an episode whose next prompt does not fit the context: an error, unless the benchmark says otherwise.

        Args:
            episode: One of `start`; it may have no reply.
        """
        return Verdict(Outcome.ERROR, "context overflow")


def load_task(reference: str, root: Path = Path()) -> type[Task]:
    """The class of a task that a configuration names.

    Args:
        reference: "code" for one of the library, "path/to/file.py:Class" or "package.module:Class" for one's own.
        root: The folder that file paths start from.

    Raises:
        InvalidInputError: There is no such class (see `cycleqd.loading.load_class`).
    """
    found: type[Task] = load_class(reference, Task, root)  # type: ignore[type-abstract]
    return found
