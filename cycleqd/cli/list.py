"""cycleqd list: the evolutions of a bucket."""

from __future__ import annotations

from typing import Any

from cycleqd.cli.output import percent, print_json, size, table
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError
from cycleqd.run.steps import find_state
from cycleqd.search import state as states
from cycleqd.storage.bucket import evolutions
from cycleqd.storage.evolution import load_config
from cycleqd.storage.objects import Store


def show(source: ConfigSource, as_json: bool) -> None:
    """Print a row an evolution: how far it is, its best average, what it takes in S3.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    with session(source) as opened:
        found = [_facts(store) for store in evolutions(opened.store.client, opened.store.bucket)]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            row["evolution"],
            "seeding" if row["generations"] is None else f"{row['generations']} of {row['planned']}",
            "–" if row["best_average"] is None else percent(row["best_average"]),
            str(row["objects"]),
            size(row["bytes"]),
            row["problem"] or "",
        ]
        for row in found
    ]
    columns = ["evolution", "generations", "best average %", "objects", "size", ""]
    table("", columns, rows, right=columns[1:-1])


def _facts(store: Store) -> dict[str, Any]:
    """An evolution in figures; one that cannot be read is there with the reason."""
    objects = store.list("")
    facts: dict[str, Any] = {"evolution": store.evolution, "objects": len(objects), "bytes": sum(objects.values())}
    facts |= {"generations": None, "planned": None, "best_average": None, "problem": None}
    try:
        if (state := find_state(store)) is not None:
            best = states.average(states.best_average(state).scores)
            planned = load_config(store).method.generations
            facts |= {"generations": state.generation, "planned": planned, "best_average": best}
    except CycleQDError as error:
        facts["problem"] = str(error)
    return facts
