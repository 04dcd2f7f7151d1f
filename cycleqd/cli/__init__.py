"""The command line `cycleqd`. Help stays quick: nothing is imported before a command needs it."""

from __future__ import annotations

from cycleqd.cli import commands, on_cluster  # noqa: F401 (help lists the commands in this order)
from cycleqd.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `cycleqd` program."""
    app()
