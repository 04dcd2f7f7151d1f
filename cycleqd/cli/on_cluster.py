"""The commands of a cluster's runs: declarations only, as beside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cycleqd.cli.app import DEFAULT, Config, Endpoint, Json, Namespace, Profile, RunName, command
from cycleqd.cli.source import ConfigSource


@command
def submit(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Start the one run that is due on the cluster, or name the one in flight."""
    from cycleqd.cli.cluster import submit as start

    start(_on_cluster(config, profile, endpoint, namespace), json)


@command
def drive(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Keep one run in flight on the cluster until the evolution is complete. May be stopped and started again."""
    from cycleqd.cli.cluster import drive as go

    go(_on_cluster(config, profile, endpoint, namespace), json)


@command
def schedule(
    cron: Annotated[str, typer.Option(help="Six fields, seconds first: '0 */30 * * * *' is every half hour.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Have the cluster run the next generations by the clock, one run at a time."""
    from cycleqd.cli.schedule import schedule as apply

    apply(_on_cluster(config, profile, endpoint, namespace), cron, json)


@command
def unschedule(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Remove the schedule; a run in flight goes on."""
    from cycleqd.cli.schedule import unschedule as remove

    remove(_on_cluster(config, profile, endpoint, namespace), json)


@command
def runs(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    limit: Annotated[int, typer.Option(min=0, help="Show so many; 0 is all.")] = 20,
    json: Json = False,
) -> None:
    """The evolution's runs on the cluster, the newest first."""
    from cycleqd.cli.runs import show

    show(_on_cluster(config, profile, endpoint, namespace), limit, json)


@command
def logs(
    run: RunName,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    task: Annotated[str, typer.Option(help="Only this task (merge, evaluate-child …), pod or child.")] = "",
    drivers: Annotated[bool, typer.Option("--drivers", help="KFP's own driver pods, too.")] = False,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="The last lines of each pod.")] = 200,
    json: Json = False,
) -> None:
    """What the pods of a run wrote."""
    from cycleqd.cli.runs import logs as show

    show(_on_cluster(config, profile, endpoint, namespace), run, task, drivers, lines, json)


@command
def retry(
    run: RunName,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Run what failed in a run, and what follows it, again; wait until it works."""
    from cycleqd.cli.runs import retry as again

    again(_on_cluster(config, profile, endpoint, namespace), run, json)


@command
def cancel(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id or step; default: all in flight.")
    ] = None,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """End runs of the evolution. What they finished stays."""
    from cycleqd.cli.runs import cancel as end

    end(_on_cluster(config, profile, endpoint, namespace), run, json)


def _on_cluster(config: Path, profile: Path | None, endpoint: str | None, namespace: str | None) -> ConfigSource:
    return ConfigSource(config, profile, {"runner": "kubeflow", "endpoint": endpoint, "namespace": namespace})
