"""cycleqd doctor: what this machine lacks for an evolution, and what to install."""

from __future__ import annotations

import dataclasses
import sys

from cycleqd.cli.output import print_json, say, table
from cycleqd.cli.progress import parts
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import UnavailableError
from cycleqd.run.machine import needs


def show(source: ConfigSource, as_json: bool) -> None:
    """Print each need with what was found or what to do; exits with UnavailableError's code where something is missing.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    config = source.load()
    with parts("looking at", len(config.tasks) + 1) as begin:
        found = needs(config, begin)
    lacking = [need for need in found if need.missing]
    if as_json:
        print_json([dataclasses.asdict(need) for need in found])
    elif not found:
        say("everything runs on the cluster: nothing is needed here; `cycleqd validate` asks the cluster")
    else:
        rows = [["missing" if need.missing else "ok", need.name, need.missing or need.found] for need in found]
        table("", ["", "what", "found, or what to do"], rows)
        say(f"{len(lacking)} of {len(found)} are missing" if lacking else "everything is here")
    if lacking:
        sys.exit(UnavailableError.exit_code)
