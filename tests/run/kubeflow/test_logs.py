"""What is shown of a run's tasks: kept lines where pods are gone or ended, and no launcher's noise unless asked for."""

from __future__ import annotations

from typing import Any

from cycleqd.run.driver import TaskLog
from cycleqd.run.kubeflow.logs import merged
from cycleqd.storage.last_lines import LastLines

NOISY = """\
time=2026-11-28T03:56:17.061Z level=INFO msg="capturing logs" argo=true
I1128 03:56:17.396248      16 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-28 03:56:18,149 INFO]: Got executor_input:
{
    "inputs": {
        "parameterValues": {}
    }
}
g000003-c00: 120 of 378 bytes merged
{
[KFP Executor 2026-11-28 03:56:18,150 WARNING]: a library warns
I1128 03:56:35.265041      16 launcher_v2.go:1230] ExecutorOutput: {
  "parameterValues": {
  }
}
last"""
OWN = "g000003-c00: 120 of 378 bytes merged\n{\n[KFP Executor 2026-11-28 03:56:18,150 WARNING]: a library warns\nlast"


def pod(name: str, phase: str, **more: Any) -> TaskLog:
    return TaskLog(name, "merge", "g000003-c00", phase, "2026-01-01T00:00:01+00:00", lambda lines: NOISY, **more)


def lines(name: str, text: str, failed: bool = False) -> LastLines:
    return LastLines("evaluate", ("g000003-c01",), failed, 1_600_000_000_000, name, text)


def test_the_launchers_lines_are_shown_only_where_everything_is() -> None:
    (log,) = merged([pod("p-1", "Failed")], [], everything=False)
    assert log.read(100) == OWN
    (log,) = merged([pod("p-1", "Failed")], [], everything=True)
    assert log.read(100) == NOISY


def test_what_a_task_kept_is_its_log_when_its_pod_has_ended_or_is_gone() -> None:
    kept = [lines("p-1", NOISY), lines("p-0", "one\ntwo\nthree\n", failed=True)]
    gone, ended, works = merged([pod("p-1", "Succeeded"), pod("p-2", "Running")], kept, everything=False)
    assert (gone.name, gone.task, gone.child, gone.phase) == ("p-0", "evaluate", "g000003-c01", "Failed")
    assert gone.read(2) == "two\nthree" and gone.started == "2020-09-13T12:26:40+00:00"
    assert ended.read(1) == "last" and ended.task == "merge" and works.read(100) == OWN


def test_a_task_that_works_again_is_not_shown_as_it_was() -> None:
    """Argo gives a retried task a pod of the same name."""
    (log,) = merged([pod("p-1", "Running")], [lines("p-1", "of the first attempt")], everything=False)
    assert log.read(100) == OWN
