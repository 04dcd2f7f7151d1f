"""An engine without a model, for tests: what it replies to a conversation is a function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Progress, Request
from cycleqd.evaluation.task import Message


class Scripted(Engine):
    """Replies with `reply`, whatever model is loaded."""

    name = "scripted"
    reproducible = True
    version = "1"

    def __init__(self) -> None:
        super().__init__(EngineSettings())

    @abstractmethod
    def reply(self, conversation: Sequence[Message]) -> str: ...

    def load(self, folder: Path, digest: str) -> None: ...

    def adapt(self, adapters: Sequence[Adapter]) -> None: ...

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        return [Completion(self.reply(request.conversation), "stop", 1, 1) for request in requests]
