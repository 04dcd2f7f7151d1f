"""cycleqd run: the evolution on this machine."""

from __future__ import annotations

from functools import partial

from rich.text import Text

from cycleqd.cli.display import Display, conclude
from cycleqd.cli.output import errors
from cycleqd.cli.session import adopted, connect
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError, OutageError
from cycleqd.run import tracked
from cycleqd.run.containers.launcher import Containers
from cycleqd.run.driver import Driver, position
from cycleqd.run.local.forks import Forks
from cycleqd.run.local.runner import LocalRunner, alone
from cycleqd.run.local.services import running
from cycleqd.run.remaining import seconds_left
from cycleqd.run.steps import find_state
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage.client import probe

OUTAGE_SECONDS = 60.0
"""Of pauses: how long a store that is away is waited for, in all; what a step has recorded by then is kept."""


def run(source: ConfigSource, as_json: bool) -> None:
    """Run to the end. Ctrl-C ends everything that was started here; what is saved is printed.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.

    Raises:
        InvalidInputError: The place is a cluster: other commands run the evolution there.
        UnavailableError: The store ignores conditional writes; or all is done, but MLflow was away and lacks some.
    """
    config = source.load()
    if config.place.runner == "kubeflow":
        raise InvalidInputError(
            f"place.runner is kubeflow: `cycleqd drive {source.flags}` runs '{config.name}' on the cluster,"
            " `cycleqd run --runner local` on this machine"
        )
    with alone(config), _launcher(config) as launcher, running(config.place) as environment:
        session = connect(config, environment)
        probe(session.store)
        config = adopted(session.store, config)
        store = session.store
        try:
            with (
                tracked.told(session.settings, store),
                Display(config, partial(find_state, store), partial(seconds_left, config, store)) as display,
                LocalRunner(config, store, session.environment, display.task, launcher) as runner,
            ):
                Driver(
                    runner,
                    partial(position, config, store),
                    announce=display.acts,
                    warned=display.warns,
                    outage=OUTAGE_SECONDS,
                    waits_for=OutageError,
                ).drive()
        except (KeyboardInterrupt, SystemExit):
            errors.print(Text(_saved(config, find_state(store), source)))
            raise
        state, trouble = session.state(), tracked.finish(session.settings, store)
        conclude(config, state, store, source, as_json)
    if trouble is not None:
        raise trouble


def _launcher(config: Config) -> Forks | Containers:
    """Where tasks run; what takes time to start does so while the services start."""
    return Containers(config) if config.place.runner == "docker" else Forks()


def _saved(config: Config, state: State | None, source: ConfigSource) -> str:
    """What an interrupted run leaves, and how to go on."""
    kept = (
        "nothing is complete yet" if state is None else f"{state.generation} of {config.method.generations} generations"
    )
    return f"\nstopped; saved: {kept}, and all finished parts of the next. Go on with: cycleqd run {source.flags}"
