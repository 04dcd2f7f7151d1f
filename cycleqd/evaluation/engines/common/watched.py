"""Calls into vLLM, which works in processes of its own and has no time-outs: none may hang, whatever dies."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from cycleqd.errors import EvaluationError
from cycleqd.evaluation.engines import Progress

T = TypeVar("T")


class Alive:
    """Hears of every conversation that vLLM finishes, through the progress bar that vLLM updates."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._last = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last

    def bar(self, items: Sequence[Any] | None = None, **options: Any) -> Any:
        """What vLLM takes for tqdm.

        Args:
            items: Prompts to go through, which is not worth counting; None for a bar to update.
            options: tqdm's own.
        """
        if items is not None:
            return items
        from tqdm import tqdm  # type: ignore[import-untyped]

        alive = self

        class Bar(tqdm):  # type: ignore[misc]
            def update(self, n: float | None = 1) -> Any:
                alive._beat(int(n or 0))
                return super().update(n)

        return Bar(**options, file=io.StringIO())

    def _beat(self, finished: int) -> None:
        self._last = time.monotonic()
        if self._progress:
            self._progress(finished)


def watched(call: Callable[[], T], seconds: float, processes: Sequence[Any], alive: Alive) -> T:
    """The result of `call`, made from a helper thread that is given up when nothing more is to be expected of it.

    Args:
        call: What may hang.
        seconds: How long `alive` may be silent.
        processes: Those that the call needs.
        alive: Hears what the call gets done.

    Raises:
        EvaluationError: The call failed, was silent for too long, or a process died; a clause that says which.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:  # shown by the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=work, name="vllm", daemon=True)
    thread.start()
    while thread.is_alive() and alive.silence() < seconds and all(process.is_alive() for process in processes):
        thread.join(timeout=min(1.0, seconds))
    if result:
        return result[0]
    if failure:
        raise EvaluationError(f"{type(failure[0]).__name__}: {' '.join(str(failure[0]).split())[:300]}")
    silent = alive.silence() >= seconds
    raise EvaluationError(f"no answer for {seconds:.0f} s" if silent else "a process of the engine died")


@contextmanager
def environment(threads: int, more: Mapping[str, str] | None = None) -> Iterator[None]:
    """vLLM is configured by variables that its processes inherit: offline, quiet, no reports home, no pinned cores.

    Args:
        threads: CPU threads of its arithmetic.
        more: Other variables.
    """
    variables = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        **(more or {}),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
