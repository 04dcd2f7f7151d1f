"""cycleqd repair: MLflow brought to what S3 holds."""

from __future__ import annotations

import contextlib

from cycleqd.cli.cluster import reach_runs
from cycleqd.cli.output import answer
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.run import tracked
from cycleqd.run.local.runner import alone

_RECENT = 20


def run(source: ConfigSource, as_json: bool) -> None:
    """Log all records again, which adds only what is missing. A run that nothing works on is shown as KILLED.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.

    Raises:
        UnavailableError: MLflow does not answer, or takes no more; or nobody knows what is in flight on the cluster.
        ConflictError: a command of this machine works on the evolution.
    """
    config = source.load()
    on_cluster = config.place.runner == "kubeflow"
    with contextlib.nullcontext() if on_cluster else alone(config), session(source, tracking=True) as opened:
        seeded = opened.seeded()
        logged = tracked.repair(opened.settings, opened.store, seeded, on_cluster and _in_flight(source))
    facts = {"evolution": config.name, "records": logged}
    answer(as_json, facts, f"{config.name}: MLflow has what all {logged} records hold")


def _in_flight(source: ConfigSource) -> bool:
    """Whether a run of the evolution works on the cluster, or will."""
    return any(run.live for run, _ in reach_runs(source).all(_RECENT))
