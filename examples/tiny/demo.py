"""`make demo`: from nothing to a report. Makes the tiny models and tasks, runs the evolution, writes the report.

Whatever is finished is kept: after an interruption, `make demo` goes on. The last screen says what happened.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cycleqd.cli.output import say
from cycleqd.run.local.services import running
from cycleqd.search.config import load

ROOT = Path(__file__).parents[2]
HERE = Path("examples/tiny")
CONFIG = HERE / "config.yaml"
HOME = Path(".cycleqd/tiny")
REPORT = HOME / "report"
KEPT = "what is finished is kept: `make demo` goes on from here"


def main() -> int:
    """Run the steps; the exit code is that of the first one that fails."""
    began = time.monotonic()
    config = load(ROOT / CONFIG)
    steps = [
        ("three experts and their base, trained from scratch", [*python("examples.tiny.make_models"), HOME / "models"]),
        ("three small benchmarks in the real ones' formats", [*python("examples.tiny.make_tasks"), HOME / "tasks"]),
        ("is everything in order? (cycleqd validate)", cycleqd("validate")),
        ("the evolution (cycleqd run)", cycleqd("run")),
        ("the report (cycleqd report)", [*cycleqd("report"), "--folder", REPORT]),
        ("every model, best first (cycleqd models)", cycleqd("models")),
        ("where the final model came from (cycleqd lineage final)", [*cycleqd("lineage"), "final"]),
    ]
    running_step = start(*steps[0])
    with running(config.place):  # S3 and MLflow start while the models are trained
        for following in [*steps[1:], None]:
            if code := running_step.wait():
                say(f"\nstopped with exit code {code}; {KEPT}")
                return code
            if following:
                running_step = start(*following)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    say(
        f"""
── done in {minutes} min {seconds} s. Where to look:
   {REPORT}/report.html        scores, archives, curves, Pareto fronts, family tree, cost; the pictures are beside it
   .venv/bin/cycleqd ui -c {CONFIG}        MLflow, in a browser, until Ctrl-C
   .venv/bin/cycleqd archive -c {CONFIG}   the grids in the terminal; also: status, samples, export, replay"""
    )
    return 0


def start(title: str, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    """Say what comes, and start it."""
    say(f"\n── {title}")
    return subprocess.Popen([str(part) for part in command], cwd=ROOT)


def python(module: str) -> list[str | Path]:
    """A module of this example as a command."""
    return [sys.executable, "-m", module]


def cycleqd(command: str) -> Sequence[str | Path]:
    """A command of `cycleqd` on the demo's configuration."""
    return [Path(sys.executable).parent / "cycleqd", command, "-c", CONFIG]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say(f"\nstopped; {KEPT}")
        sys.exit(130)
