"""A task as it was seeded: its class and data from the copies in S3, verified against the digests recorded there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cycleqd.evaluation.splits import choose
from cycleqd.evaluation.task import Sample, Task, Workspace, load_task
from cycleqd.outside import inside
from cycleqd.search.records import JSON
from cycleqd.search.tasks import TaskConfig
from cycleqd.storage import layout
from cycleqd.storage.frozen import fetch
from cycleqd.storage.objects import Store

Split = Literal["search", "test"]


@dataclass(frozen=True)
class StagedTask:
    """A task of the evolution, its class loaded; its data are fetched when it has to be run.

    `files` is what seeding recorded: digest and files of the data, size and digest of the plug-in.
    """

    name: str
    config: TaskConfig
    files: JSON
    kind: type[Task]

    @classmethod
    def load(cls, store: Store, name: str, config: TaskConfig, files: JSON, scratch: Path) -> StagedTask:
        """Load the task's class, from the evolution's copy where it is a plug-in.

        Args:
            store: The evolution's objects.
            name: The task's name.
            config: The task, as configured.
            files: What seeding recorded.
            scratch: Folder for copies of stored files, laid out as in the store.
        """
        reference = config.class_
        if files["plugin"] is not None:
            fetch(store, f"{layout.task(name)}/plugin.py", files["plugin"]["sha256"], scratch)
            reference = f"{layout.task(name)}/plugin.py:{reference.rpartition(':')[2]}"
        return cls(name, config, files, load_task(reference, scratch))

    def open(self, scratch: Path, workers: int) -> Task:
        """The task, not yet entered.

        Args:
            scratch: Folder in which it gets one of its own.
            workers: How many threads will call it at once.
        """
        private = scratch / "work" / self.name
        private.mkdir(parents=True, exist_ok=True)
        return self.kind(self.config.settings, Workspace(private, workers))

    def samples(self, store: Store, task: Task, split: Split, scratch: Path) -> Sequence[Sample]:
        """The samples of a split, from the verified copy of the data.

        Args:
            store: The evolution's objects.
            task: What `open` returned.
            split: "search" or "test".
            scratch: Folder for copies of stored files.

        Raises:
            IntegrityError: The copy differs from what seeding recorded.
        """
        for name, file in self.files["data"]["files"].items():
            fetch(store, f"{layout.task(self.name)}/data/{name}", file["sha256"], scratch)
        basename = self.config.data.rsplit("/", 1)[-1]
        return choose(task.load(inside(scratch / layout.task(self.name) / "data", basename)), self.config.split, split)
