"""The interface of an engine: conversations in, texts out, weights swapped while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cycleqd.evaluation.task import Message


@dataclass(frozen=True)
class Sampling:
    """How to generate. Temperature 0 is greedy; `max_tokens` bounds one reply, in tokens of the model's tokenizer."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One reply. `finish` is "stop" (end token or stop string), "length" (max_tokens reached), or "overflow".

    "overflow": prompt and one new token do not fit the context; `text` is empty and the episode ends without a pass.
    Stop strings are not part of `text`.
    """

    text: str
    finish: Literal["stop", "length", "overflow"]
    prompt_tokens: int
    tokens: int


Progress = Callable[[int], None]
"""Called with the number of conversations finished since the last call."""


class Engine(Protocol):
    """A running inference engine. One start serves every model and task of a process.

    Failures of the engine itself (out of memory after the bounded retry, a dead worker) raise
    `cycleqd.errors.EvaluationError`.
    """

    name: str
    """"transformers" or "vllm"; written into every record."""

    @property
    def reproducible(self) -> bool:
        """Whether two runs on one machine give the same bytes."""

    @property
    def version(self) -> str:
        """Library versions, device and dtype in one line, for run.json."""

    def load(self, folder: Path, digest: str) -> None:
        """Make the checkpoint in `folder` (a Hugging Face folder) the current model, swapping into a running engine.

        `digest` identifies the checkpoint; loading the current digest again is free. Same architecture as the first.
        """

    def generate(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        """One completion a conversation, in order, through the model's own chat template (generation prompt added)."""

    def reset(self) -> None:
        """Forget caches that could carry state from one (model, task) to the next."""

    def close(self) -> None:
        """Stop, free the device."""
