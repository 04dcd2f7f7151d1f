"""What made a task fail: where runs execute, exit code 1 is known for all of it. And what it wrote, where pods go.

On this machine the runner names a file for a failure, and keeps logs. The records of a task on Kubeflow are in S3, in
the folder of its run, so that what an earlier run met stops no later one. They are never hashed and read by no stage;
the task that wrote them removes them when it begins again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cycleqd.errors import REFUSALS, CycleQDError
from cycleqd.search.records import digest
from cycleqd.storage import layout, run_layout
from cycleqd.storage.last_lines import kept, told
from cycleqd.storage.objects import Store
from cycleqd.storage.results import provenance

FAILURE = "CYCLEQD_FAILURE"
"""The variable that names the file in which a task of a run on this machine records why it fails."""
_LONGEST = 2000
_SHOWN = 4


@dataclass(frozen=True)
class Failure:
    """A task that ended with an error. `models`: the children that it was given. `kind`: the error's class.

    `at`: milliseconds since the epoch.
    """

    task: str
    models: tuple[str, ...]
    kind: str
    exit_code: int
    sentence: str
    kfp_run: str
    kfp_pod: str
    at: int

    @property
    def refusal(self) -> bool:
        """Whether repeating cannot help: wrong input, altered data, a conflict, a model that cannot be scored."""
        return self.exit_code in REFUSALS

    def __str__(self) -> str:
        """The task and its error."""
        shown = [*self.models[:_SHOWN], *(["…"] if len(self.models) > _SHOWN else [])]
        return f"{' '.join([self.task, *shown])}: {self.sentence}"


@contextlib.contextmanager
def recorded(store: Store, task: str, *given: str) -> Iterator[None]:
    """Do the work of a task; its failure is recorded, and raised again.

    In the file that CYCLEQD_FAILURE names, else in S3 for the Kubeflow run of KFP_RUN_ID, and there with the last lines
    that the task wrote, however it ends; else nowhere.

    Args:
        store: Objects of the evolution.
        task: Name of the task.
        given: The task's arguments, which tell its failures from those of other children.
    """
    file, run = os.environ.get(FAILURE, ""), os.environ.get("KFP_RUN_ID", "")
    if run and not file:
        with _in_folder_of(run, store, task, given):
            yield
        return
    try:
        yield
    except Exception as error:
        if file:
            Path(file).write_text(json.dumps(asdict(_describe(task, given, run, error))), encoding="utf-8")
        raise


@contextlib.contextmanager
def _in_folder_of(run: str, store: Store, task: str, given: tuple[str, ...]) -> Iterator[None]:
    name = f"{task}-{digest(list(given))[:12]}"
    failure, lines = run_layout.failure(run, name), run_layout.last_lines(run, name)
    store.delete([failure, lines])
    try:
        with kept(store, lines, task, given):
            yield
    except Exception as error:
        with contextlib.suppress(CycleQDError):  # S3 may be what fails: the error itself counts more
            store.put_json(failure, asdict(_describe(task, given, run, error)))
        raise


def _describe(task: str, given: tuple[str, ...], run: str, error: Exception) -> Failure:
    if isinstance(error, CycleQDError):
        exit_code, sentence = error.exit_code, str(error)
    else:
        exit_code, sentence = CycleQDError.exit_code, f"{type(error).__name__}: {error}"
    return Failure(
        task=task,
        models=tuple(layout.children_in(" ".join(given))),
        kind=type(error).__name__,
        exit_code=exit_code,
        sentence=sentence[:_LONGEST],
        kfp_run=run,
        kfp_pod=provenance()["kfp_pod"],
        at=time.time_ns() // 1_000_000,
    )


def find_failure(store: Store, run: str) -> Failure | None:
    """The failure that explains a run best: a refusal before others, then the latest; None when none is recorded.

    Args:
        store: Objects of the evolution.
        run: Id of the run in Kubeflow Pipelines.

    Raises:
        IntegrityError: an object of the run's folder is not the record of a failure.
    """
    found = told(store, run_layout.failures(run), Failure, "is not the record of a failure")
    return max(found, key=lambda failure: (failure.refusal, failure.at), default=None)
