"""A task of its own in one file: copying words. The tiny demo scores it on base, experts and final model only.

Data: a text file, one item a line, the words to repeat. The base model was taught this; what the experts and the merged
models have forgotten of it shows in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cycleqd.plugins import Episode, Outcome, Sample, SingleTurn, Task, Verdict


class Copying(Task):
    """Repeat the words. One round; exact match."""

    method_version = 1

    def load(self, data: Path) -> Sequence[Sample]:
        """One sample a line; its id is the line's number."""
        lines = data.read_text(encoding="utf-8").splitlines()
        return [Sample(id=str(number), record={"words": line}) for number, line in enumerate(lines)]

    def start(self, sample: Sample) -> Episode:
        """Ask for the words."""
        return SingleTurn(sample, [{"role": "user", "content": f"repeat {sample.record['words']}"}])

    def verdict(self, episode: Episode) -> Verdict:
        """Compare the reply with the words, white space at the ends aside."""
        passed = episode.replies[-1].strip() == episode.sample.record["words"]
        return Verdict(Outcome.PASSED if passed else Outcome.WRONG, "compared the reply with the words")
