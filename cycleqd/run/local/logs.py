"""The logs of tasks on this machine: a folder a step, in it a file a task and a note of what became of the task."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cycleqd.run.driver import FAILED_TASK, TaskLog
from cycleqd.run.graph import GraphTask
from cycleqd.storage import layout


class StepLogs:
    """The logs that a run of a step writes, in place of those of the step's last run."""

    def __init__(self, folder: Path) -> None:
        """Begin with no logs.

        Args:
            folder: The step's own; it is emptied.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def written(self, task: GraphTask) -> Iterator[Path]:
        """The file for the log of a task that runs as long as the context lasts. It has failed where that raises.

        Args:
            task: Tasks may begin in any thread.
        """
        children = layout.children_in(json.dumps(task.inputs))
        note = {
            "task": task.name,
            "child": children[0] if len(children) == 1 else "",
            "started": datetime.now(UTC).isoformat(),
        }
        log = self.folder / f"{next(self._numbers):04d}-{task.name}.log"
        log.touch()
        _note(log, {**note, "phase": "Running"})
        try:
            yield log
        except BaseException:
            _note(log, {**note, "phase": FAILED_TASK})
            raise
        _note(log, {**note, "phase": "Succeeded"})


def _note(log: Path, note: dict[str, str]) -> None:
    hidden = log.with_suffix(".new")
    hidden.write_text(json.dumps(note))
    hidden.replace(log.with_suffix(".json"))


def find_logs(folder: Path) -> list[TaskLog]:
    """The logs of a step's last run here, the oldest first; none where it has not run here.

    Args:
        folder: The step's own.
    """
    found = []
    for note in sorted(folder.glob("*.json")):
        read = partial(_last_lines, note.with_suffix(".log"))
        found.append(TaskLog(name=note.stem, read=read, **json.loads(note.read_text())))
    return found


def _last_lines(log: Path, lines: int) -> str:
    with log.open(errors="replace") as file:
        return "".join(deque(file, lines))
