"""An engine of one's own: it repeats what it was asked. A benchmark can be tried with it in a second, without a model.

A real one reads the checkpoint in `load` (see cycleqd/evaluation/engines/transformers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cycleqd.plugins import Adapter, Completion, Engine, Progress, Request


class Echo(Engine):
    """Every model, and every adapter, replies with the last message; a word is a token."""

    name = "echo"
    reproducible = True
    version = "echo 1"

    def load(self, folder: Path, digest: str) -> None:
        """Nothing to load: all models are the same."""

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Nothing to keep."""

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """The words of each last message, `max_tokens` at most."""
        found = []
        for request in requests:
            words = str(request.conversation[-1]["content"]).split()
            reply = words[: request.sampling.max_tokens]
            whole = len(reply) == len(words)
            found.append(Completion(" ".join(reply), "stop" if whole else "length", len(words), len(reply)))
        if progress:
            progress(len(requests))
        return found
