"""report: one HTML page and its pictures in a folder, from the evolution's records."""

from __future__ import annotations

from pathlib import Path

from cycleqd.progress import Bar, no_bar
from cycleqd.report.collect import collect
from cycleqd.report.render import write
from cycleqd.storage import layout
from cycleqd.storage.objects import Store


def run(store: Store, folder: Path, bar: Bar = no_bar, command: str = "") -> Path:
    """Write the report of the evolution as it is now; returns the page's path. May be repeated at any time.

    The models that the report names are kept from cleaning from now on.

    Args:
        store: Objects of the evolution.
        folder: Where the page and its pictures are written.
        bar: Shows how far the work is.
        command: With which the evolution is run again; "" where there is none to name.

    Raises:
        ConflictError: seeding has not ended.
    """
    data = collect(store, bar)
    named = {row.id for row in data.rows} | {name for name, _ in data.recipe} | {data.best}
    store.put_json(layout.REPORT_MODELS, {"models": sorted(named)})
    return write(data, folder, bar, command)
