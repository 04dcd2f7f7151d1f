"""cycleqd report: the page and its pictures."""

from __future__ import annotations

from pathlib import Path

from cycleqd.cli.output import answer
from cycleqd.cli.progress import counting
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource


def write(source: ConfigSource, folder: Path, as_json: bool) -> None:
    """Write the report of the evolution as it is now.

    Args:
        source: Files and flags that make the configuration.
        folder: Made if need be.
        as_json: Print JSON.
    """
    from cycleqd.report.write import run

    with session(source) as opened:
        opened.state()
        go = "drive" if opened.config.place.runner == "kubeflow" else "run"
        page = run(opened.store, folder, counting, f"cycleqd {go} {source.flags}")
    answer(as_json, {"page": str(page)}, f"the report is {page}")
