"""cycleqd extend: what the configuration raises or adds after seeding."""

from __future__ import annotations

from cycleqd.cli.output import answer
from cycleqd.cli.progress import parts
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.run.extend import extend
from cycleqd.storage.evolution import load_config
from cycleqd.storage.frozen import changes
from cycleqd.tracking import unlogged


def run(source: ConfigSource, as_json: bool) -> None:
    """Record what is raised or added; the next run goes on from there.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    config = source.load()
    with session(source, tracking=True) as opened, parts("checking", len(config.tasks)) as begin:
        record = extend(opened.store, config, begin)
        if record is None:
            answer(as_json, {"evolution": config.name, "changes": []}, f"{config.name} has this configuration already")
            return
        made = list(changes(record))
        unlogged.catch_up(opened.settings, opened.store, load_config(opened.store))
    go = "drive" if config.place.runner == "kubeflow" else "run"
    again = f"go on with: cycleqd {go} {source.flags}"
    answer(as_json, {"evolution": config.name, "changes": made}, f"{config.name}: {'; '.join(made)}; {again}")
