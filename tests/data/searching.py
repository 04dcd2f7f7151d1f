"""A task for tests, given by path: its verdict tells where a credential is found while the stage is at work.

The credential may be in the environment or in a file, whose name is looked for as the credential itself is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cycleqd.evaluation import sandbox
from cycleqd.evaluation.sandbox.machine import Keeper, MachinePlan
from cycleqd.evaluation.sandbox.watch import descendants
from cycleqd.plugins import Episode, Outcome, Sample, SingleTurn, Task, Verdict

ENVIRONMENTS = "cat /proc/[0-9]*/environ /proc/[0-9]*/task/*/environ /proc/self/environ 2>/dev/null; env; echo searched"


class Searching(Task):
    """Data: any file. Credentials are `settings.secrets`, their file `settings.file`; `detail` holds what was seen."""

    def load(self, data: Path) -> Sequence[Sample]:
        return [Sample(str(number), {}) for number in range(2)]

    def start(self, sample: Sample) -> Episode:
        return SingleTurn(sample, [{"role": "user", "content": "hello"}])

    def verdict(self, episode: Episode) -> Verdict:
        file = self.settings["file"]
        shell = ["/usr/bin/bash", "-c", f'{ENVIRONMENTS}; cat "$0" 2>/dev/null', file]
        with Keeper() as keeper, keeper.open(MachinePlan()) as machine:
            children = [self.read(pid) for pid in descendants(os.getpid())]
            seen = {
                "box without /proc": sandbox.run(shell).stdout,
                "machine with /proc": machine.run(shell, 5).stdout,
                "machine's own": machine.run(["cat", "/proc/1/environ"], 5).stdout,
                "stage": self.read(os.getpid()),
                "stage's children": b"".join(children),
                "stage's parent": self.read(os.getppid()),
            }
        secrets = [secret.encode() for secret in self.settings["secrets"]]
        found = {name: any(secret in text for secret in secrets) for name, text in seen.items()}
        sizes = {name: len(text) for name, text in seen.items()}
        return Verdict(Outcome.WRONG, "searched", {"found": found, "sizes": sizes, "children": len(children)})

    @staticmethod
    def read(pid: int) -> bytes:
        return Path(f"/proc/{pid}/environ").read_bytes()
