"""cycleqd ui: the embedded services, kept up so that MLflow can be looked at."""

from __future__ import annotations

import signal

from cycleqd.cli.output import say
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.local.services import running


def serve(source: ConfigSource) -> None:
    """Run until a signal comes.

    Args:
        source: Files and flags that make the configuration.

    Raises:
        InvalidInputError: The services are not embedded.
    """
    config = source.load()
    if config.place.services != "embedded":
        raise InvalidInputError(
            f"{source.path}: place.services is 'external', so there is nothing to start here:"
            " open MLFLOW_TRACKING_URI itself"
        )
    with running(config.place) as environment:
        say(f"MLflow: {environment['MLFLOW_TRACKING_URI']} · the experiment is '{config.name}' · Ctrl-C ends it")
        signal.pause()
