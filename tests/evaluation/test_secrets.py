"""Credentials of the stage are in no environment that hostile output could come to see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.evaluation.records import read_transcripts
from tests.evaluation.identities import issuing
from tests.evolution import Evolution

DATA = Path(__file__).parents[1] / "data"
STAGE = "import sys; from components.evaluate.stage import run; run(*sys.argv[1:])"
WIPED = """
import os, subprocess, sys
from pathlib import Path
from cycleqd.evaluation.secrets import withheld
if sys.argv[1] == "fork" and (child := os.fork()):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
shown = lambda: Path("/proc/self/environ").read_bytes()
assert b"do-not-leak" in shown()
with withheld():
    assert b"do-not-leak" not in shown() and "AWS_SECRET_ACCESS_KEY" not in os.environ
    assert b"KEPT=kept" in shown().split(b"\\0") and os.environ["KEPT"] == "kept"
    inherited = subprocess.run(["/usr/bin/env"], capture_output=True).stdout
    assert b"KEPT=kept" in inherited and b"do-not-leak" not in inherited
assert b"do-not-leak" not in shown() and os.environ["AWS_SECRET_ACCESS_KEY"] == "do-not-leak"
"""


def test_credentials_are_wiped_where_the_kernel_shows_them() -> None:
    for how in ("start", "fork"):
        environment = {"AWS_SECRET_ACCESS_KEY": "do-not-leak", "KEPT": "kept"}
        done = subprocess.run(
            [sys.executable, "-c", WIPED, how], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["static keys", "web identity", "container"])
def test_no_process_of_an_evaluation_carries_what_leads_to_the_s3_keys(
    evolution: Callable[..., Evolution], environment: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """The stage in a process of its own, with its credentials in the environment or known by a token, as in a pod.

    Keys that a token gives are renewed while the environment is without its name.
    """
    access, secret, token = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], "do-not-leak"
    file = tmp_path / "token"
    task = {"class": f"{DATA / 'searching.py'}:Searching", "settings": {"secrets": [secret, token], "file": str(file)}}
    with issuing(access, secret, token) as issuer:
        variables = dict(os.environ)
        if kind != "static keys":
            task["settings"] = {"secrets": [secret, token, str(file)], "file": str(file)}
            del variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
            variables |= issuer.environment(kind, file)
        evo = evolution(tasks={"two": {**task, "split": {"share": 0.5, "seed": 1}}})
        evo.seed()
        arguments = [evo.name, '["base"]', json.dumps(["two"]), "search", evo.profile]
        # A shell stands between, as Kubeflow's launcher does: it keeps the credentials, and nothing in a box sees it.
        command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", STAGE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    assert not issuer.refused and (kind == "static keys" or issuer.asked > 5)
    for record in read_transcripts(evo.store, "base", "two", "search"):
        found, sizes = record["detail"]["found"], record["detail"]["sizes"]
        assert found.pop("stage's parent")
        assert not any(found.values()), found
        assert record["detail"]["children"] >= 2 and sizes["stage"] > 0 and sizes["stage's children"] > 0
        assert sizes["machine's own"] > 0 and sizes["box without /proc"] > 0
