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
        page = run(opened.store, folder, counting)
    answer(as_json, {"page": str(page)}, f"the report is {page}")
