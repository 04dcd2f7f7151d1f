"""The last lines that a task on Kubeflow wrote, kept in S3: its pod, and with it the log, is removed after a while."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

from cycleqd.errors import CycleQDError, IntegrityError
from cycleqd.storage import layout, run_layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import provenance
from cycleqd.storage.settings import CREDENTIALS

T = TypeVar("T")

LINES, BYTES = 200, 64 << 10
"""At most so much of a task is kept."""
_SECRET = 8  # characters; a shorter value, such as a user's name, may be any word
_PATIENCE = 5.0  # seconds for what is left in a pipe; a process that stays behind may hold it open


@dataclass(frozen=True)
class LastLines:
    """What a task wrote before it ended. `models`: the children that it was given. `started`: milliseconds since the
    epoch.
    """

    task: str
    models: tuple[str, ...]
    failed: bool
    started: int
    kfp_pod: str
    text: str


class Tail:
    """The last bytes that pass, added in any thread."""

    def __init__(self) -> None:
        self._bytes = b""
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Let bytes pass.

        Args:
            data: Any number of them.
        """
        with self._lock:
            self._bytes = (self._bytes + data)[-BYTES:]

    def text(self, secrets: frozenset[str]) -> str:
        """The last lines.

        Args:
            secrets: What is blanked out in them.
        """
        with self._lock:
            text = self._bytes.decode(errors="replace")
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return "".join(text.splitlines(keepends=True)[-LINES:])


@contextlib.contextmanager
def kept(store: Store, key: str, task: str, given: tuple[str, ...]) -> Iterator[None]:
    """Do the work of a task; what it and its processes wrote is recorded when it ends, however it does.

    A task that is killed records nothing.

    Args:
        store: Objects of the evolution.
        key: Of the record.
        task: Name of the task.
        given: The task's arguments.
    """
    secrets = frozenset(value for name in CREDENTIALS if len(value := os.environ.get(name, "")) >= _SECRET)
    tail, started, failed = Tail(), time.time_ns() // 1_000_000, True
    try:
        with _copied(1, tail), _copied(2, tail):
            yield
        failed = False
    except Exception as error:
        tail.add((f"{error}\n" if isinstance(error, CycleQDError) else traceback.format_exc()).encode())
        raise
    finally:
        models, pod = tuple(layout.children_in(" ".join(given))), provenance()["kfp_pod"]
        with contextlib.suppress(CycleQDError):  # the work counts more than what is told of it
            store.put_json(key, asdict(LastLines(task, models, failed, started, pod, tail.text(secrets))))


@contextlib.contextmanager
def _copied(descriptor: int, tail: Tail) -> Iterator[None]:
    """Have what this process and its children write to a file descriptor pass the tail on its way."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    origin = os.dup(descriptor)
    source, sink = os.pipe()
    os.dup2(sink, descriptor)
    os.close(sink)
    pump = threading.Thread(target=_pump, args=(source, origin, tail), daemon=True)
    pump.start()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(origin, descriptor)
        pump.join(_PATIENCE)


def _pump(source: int, origin: int, tail: Tail) -> None:
    """Until the pipe's last writer is gone. Writers would hang if it ended before, whatever becomes of the origin."""
    while data := os.read(source, 1 << 16):
        tail.add(data)
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(origin, data) :]
    os.close(source)
    os.close(origin)


def find_lines(store: Store, run: str) -> list[LastLines]:
    """What tasks of a run have kept, the oldest first.

    Args:
        store: Objects of the evolution.
        run: Id of the run in Kubeflow Pipelines.

    Raises:
        IntegrityError: an object of the run's folder is no such record.
    """
    found = told(store, run_layout.last_lines_of(run), LastLines, "holds no last lines of a task")
    return sorted(found, key=lambda lines: (lines.started, lines.kfp_pod))


def told(store: Store, folder: str, kind: Callable[..., T], wrong: str) -> list[T]:
    """What tasks of a run have told there.

    Args:
        store: Objects of the evolution.
        folder: Folder of the records.
        kind: Makes one of a record's fields, of which `models` is a tuple.
        wrong: What is said of an object that is none.

    Raises:
        IntegrityError: an object of the folder is no such record.
    """
    found = []
    for key in store.list(folder):
        value = store.find_json(key)
        if value is None:  # its task has just begun again
            continue
        try:
            found.append(kind(**{**value, "models": tuple(value["models"])}))
        except (TypeError, KeyError) as error:
            raise IntegrityError(f"{store.url(key)} {wrong} ({error!r}); delete it") from error
    return found
