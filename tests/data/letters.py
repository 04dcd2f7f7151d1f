"""A task for tests, given by path: cheap to judge, and neither always nor never passed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cycleqd.plugins import Episode, Outcome, Sample, SingleTurn, Task, Verdict


class Letters(Task):
    """Data: a JSON list of {"id", "prompt"}. The reply's byte sum modulo 97 be in [settings.low, settings.high)."""

    method_version = 1

    def load(self, data: Path) -> Sequence[Sample]:
        return [Sample(item["id"], item, group=item["id"][0]) for item in json.loads(data.read_text())]

    def start(self, sample: Sample) -> Episode:
        return SingleTurn(sample, [{"role": "user", "content": sample.record["prompt"]}])

    def verdict(self, episode: Episode) -> Verdict:
        total = sum(episode.replies[-1].encode()) % 97
        passed = self.settings["low"] <= total < self.settings["high"]
        return Verdict(Outcome.PASSED if passed else Outcome.WRONG, f"the sum is {total}")
