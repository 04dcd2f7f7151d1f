"""cycleqd rescore: the living models scored again by the present versions of the tasks' methods."""

from __future__ import annotations

from cycleqd.cli.output import answer
from cycleqd.cli.session import adopted, session
from cycleqd.cli.source import ConfigSource
from cycleqd.run import rescore
from cycleqd.run.local.runner import alone


def run(source: ConfigSource, as_json: bool) -> None:
    """Score on this machine what was scored by another method version; the archives then hold these scores alone.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    config = source.load()
    with alone(config), session(source, tracking=True) as opened:
        adopted(opened.store, config)
        changed = rescore.rescore(opened.settings, opened.store, opened.seeded())
        state = opened.state()
    tasks = sorted({task for _, task in changed})
    models = list(dict.fromkeys(model for model, _ in changed))
    facts = {
        "evolution": config.name,
        "models": models,
        "tasks": tasks,
        "snapshot": state.generation,
        "sha256": state.digest,
        "forgotten": state.forgotten,
    }
    gone = f"; {state.forgotten} children that are gone are only counted from now on" if state.forgotten else ""
    done = f"{len(models)} models scored again on {', '.join(tasks)}{gone}"
    answer(as_json, facts, f"{config.name}: {done if changed else 'every score is by the present method versions'}")
