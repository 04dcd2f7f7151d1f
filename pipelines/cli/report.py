"""cycleqd report: the page and its pictures."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli.given import Given
from pipelines.cli.output import print_json, say
from pipelines.cli.progress import counting
from pipelines.cli.session import session


def write(given: Given, folder: Path, as_json: bool) -> None:
    """Write the report of the evolution as it is now."""
    from components.report.stage import run

    with session(given) as opened:
        opened.state()
        page = run(opened.store, folder, counting)
    if as_json:
        print_json({"page": str(page)})
    else:
        say(f"the report is {page}")
