"""What a task on Kubeflow leaves of what it wrote, with its processes, in S3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.storage import run_layout
from cycleqd.storage.failures import recorded
from cycleqd.storage.last_lines import BYTES, LINES, LastLines, find_lines
from cycleqd.storage.objects import Store

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a task's pod; its run's id."""
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.setenv("KFP_POD_NAME", "pod-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "merge")
    return "run-1"


def say(text: str, descriptor: int = 1) -> None:
    os.write(descriptor, text.encode())


def only(store: Store, run: str) -> LastLines:
    (found,) = find_lines(store, run)
    return found


def test_what_the_task_and_its_processes_wrote_is_kept_and_still_written(
    store: Store, pod: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with recorded(store, "merge", '{"child": "g000003-c01"}'):
        say("from the task\n")
        subprocess.run([sys.executable, "-c", "import sys; print('from a child', file=sys.stderr)"], check=True)
    kept = only(store, pod)
    assert sorted(kept.text.splitlines()) == ["from a child", "from the task"]
    assert (kept.task, kept.models, kept.failed, kept.kfp_pod) == ("merge", ("g000003-c01",), False, "pod-1")
    written = capfd.readouterr()
    assert (written.out, written.err) == ("from the task\n", "from a child\n")
    say("after it\n")
    assert capfd.readouterr().out == "after it\n" and only(store, pod) == kept


def test_a_failure_ends_the_lines_with_its_sentence_or_with_where_it_came_from(store: Store, pod: str) -> None:
    for error, end in ((InvalidInputError("no such model"), "no such model\n"), (KeyError("x"), "KeyError: 'x'\n")):
        with pytest.raises(type(error)), recorded(store, "merge"):
            say("begun\n")
            raise error
        kept = only(store, pod)
        assert kept.failed and kept.text.startswith("begun\n") and kept.text.endswith(end)
    assert "Traceback" in kept.text and "test_last_lines.py" in kept.text


def test_no_credential_is_kept_and_a_short_name_is_no_credential(store: Store, pod: str) -> None:
    with recorded(store, "merge"):
        say(f"merge with {SECRET}!\n")
    assert only(store, pod).text == "merge with ***!\n"


def test_no_more_than_the_last_lines_and_bytes_are_kept(store: Store, pod: str) -> None:
    with recorded(store, "merge"):
        say("".join(f"line {number}\n" for number in range(1000)))
    assert only(store, pod).text.splitlines() == [f"line {number}" for number in range(1000 - LINES, 1000)]
    with recorded(store, "merge"):
        for _ in range(10):
            say("x" * BYTES)
    assert len(only(store, pod).text) == BYTES


def test_a_task_that_begins_again_or_is_killed_has_no_lines(store: Store, pod: str) -> None:
    with recorded(store, "merge"):
        say("first\n")
    with recorded(store, "merge"):
        assert find_lines(store, pod) == [], "whatever kills it now left nothing"


def test_a_process_that_stays_behind_delays_nothing_for_long_and_may_go_on_writing(
    store: Store, pod: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cycleqd.storage.last_lines._PATIENCE", 0.1)
    wait = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\nprint('late')"
    with recorded(store, "merge"):
        child = subprocess.Popen([sys.executable, "-c", wait])
    assert only(store, pod).text == ""
    (tmp_path / "go").touch()
    assert child.wait(30) == 0


def test_what_is_no_record_is_said_and_other_runs_are_left_out(store: Store, pod: str) -> None:
    store.put(run_layout.last_lines("run-10", "merge-1"), b'{"format": 1, "task": "merge"}')
    assert find_lines(store, pod) == []
    with pytest.raises(IntegrityError, match=r"merge-1\.json holds no last lines"):
        find_lines(store, "run-10")
