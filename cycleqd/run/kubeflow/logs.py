"""What the tasks of a run wrote: what they kept in S3, else their pods' logs as long as these are there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from cycleqd.run.driver import FAILED_TASK, TaskLog
from cycleqd.storage.last_lines import LastLines

_LAUNCHER = re.compile(
    r"[IWEF]\d{4} [\d:.]+ +\d+ \S+\.go:\d+\] "  # KFP's launcher
    r"|time=\S+ level=\w+ .*\bargo=true"  # Argo's, around it
    r"|\[KFP Executor \S+ \S+ INFO\]: "  # KFP's, in the task's own process
)


def merged(pods: Sequence[TaskLog], kept: Sequence[LastLines], everything: bool) -> list[TaskLog]:
    """A log for each pod, and for each that is gone; the oldest first.

    Args:
        pods: Those that are there.
        kept: What tasks of the run have kept.
        everything: Pods' logs as they are; else the tasks' own lines.
    """
    records = {lines.kfp_pod: lines for lines in kept}
    found = []
    for pod in pods:
        record = records.pop(pod.name, None)
        if everything:
            found.append(pod)
        elif record is not None and not pod.live:
            found.append(replace(pod, read=partial(_last, record.text, everything)))
        else:
            found.append(replace(pod, read=partial(_own, pod.read)))
    found += [_of(lines, everything) for lines in records.values()]
    return sorted(found, key=lambda log: (log.started or "~", log.name))


def _of(lines: LastLines, everything: bool) -> TaskLog:
    """The log of a pod that is gone."""
    return TaskLog(
        name=lines.kfp_pod,
        task=lines.task,
        child=lines.models[0] if len(lines.models) == 1 else "",
        phase=FAILED_TASK if lines.failed else "Succeeded",
        started=datetime.fromtimestamp(lines.started / 1000, UTC).isoformat(timespec="seconds"),
        read=partial(_last, lines.text, everything),
    )


def _last(text: str, everything: bool, count: int) -> str:
    lines = text.splitlines()
    return "\n".join((lines if everything else [*_without_launcher(lines)])[-count:])


def _own(read: Callable[[int], str], count: int) -> str:
    """The task's own lines among the last of a pod."""
    return "\n".join(_without_launcher(read(count).splitlines()))


def _without_launcher(lines: Iterable[str]) -> Iterator[str]:
    """Nor the indented JSON that the launcher shows at the end of a line or below it: a brace of its own ends it."""
    inside = shown = False
    for line in lines:
        if inside:
            inside = line != "}"
        elif _LAUNCHER.match(line):
            inside, shown = line.endswith("{"), True
        elif shown and line == "{":
            inside = True
        else:
            shown = False
            yield line
