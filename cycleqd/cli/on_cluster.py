"""The commands that drive an evolution on a cluster: declarations only."""

from __future__ import annotations

from typing import Annotated

import typer

from cycleqd.cli.app import command
from cycleqd.cli.options import Anywhere, Cluster, Fresh, Json, Limit, RunName


@command
def submit(source: Cluster, fresh: Fresh = False, json: Json = False) -> None:
    """Start the one run that is due on the cluster, or name the one in flight."""
    from cycleqd.cli.cluster import submit as start

    start(source, fresh, json)


@command
def drive(source: Cluster, fresh: Fresh = False, json: Json = False) -> None:
    """Keep one run in flight on the cluster until the evolution is complete. May be stopped and started again."""
    from cycleqd.cli.cluster import drive as go

    go(source, fresh, json)


@command
def schedule(
    cron: Annotated[str, typer.Option(help="Six fields, seconds first: '0 */30 * * * *' is every half hour.")],
    source: Cluster,
    json: Json = False,
) -> None:
    """Have the cluster run the next generations by the clock, one run at a time."""
    from cycleqd.cli.schedule import schedule as apply

    apply(source, cron, json)


@command
def unschedule(
    source: Cluster,
    now: Annotated[bool, typer.Option("--now", help="End its run in flight; what that finished stays.")] = False,
    json: Json = False,
) -> None:
    """Have the schedule start nothing more; wait until its run in flight has ended, then remove it."""
    from cycleqd.cli.schedule import unschedule as remove

    remove(source, now, json)


@command
def runs(source: Cluster, limit: Limit = 20, json: Json = False) -> None:
    """The evolution's runs on the cluster, the newest first."""
    from cycleqd.cli.runs import show

    show(source, limit, json)


@command
def logs(
    source: Anywhere,
    run: RunName,
    task: Annotated[str, typer.Option(help="Only this task (merge, evaluate-models …), pod or child.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="What KFP's launcher wrote around them, and KFP's own driver pods, too.")
    ] = False,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="The last lines of each task.")] = 200,
    json: Json = False,
) -> None:
    """Why a run failed, and what its tasks wrote, those that failed or else all: of a run here, or on the cluster."""
    from cycleqd.cli.logs import show

    show(source, run, task, everything, lines, json)


@command
def retry(source: Cluster, run: RunName, json: Json = False) -> None:
    """Run what failed in a run, and what follows it, again as it was compiled; wait until it works."""
    from cycleqd.cli.runs import retry as again

    again(source, run, json)


@command
def cancel(
    source: Cluster,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id or step; default: all in flight.")
    ] = None,
    json: Json = False,
) -> None:
    """End runs of the evolution. What they finished stays."""
    from cycleqd.cli.runs import cancel as end

    end(source, run, json)
