"""cycleqd ui: the embedded services, kept up so that MLflow can be looked at."""

from __future__ import annotations

import signal
from pathlib import Path

from cycleqd.config import load
from cycleqd.errors import InvalidInputError
from pipelines.cli.output import say
from pipelines.services import running


def serve(path: Path) -> None:
    """Run until a signal comes. Raises InvalidInputError where the services are not embedded."""
    config = load(path)
    if config.place.services != "embedded":
        raise InvalidInputError(
            f"{path}: place.services is 'external', so there is nothing to start here: open MLFLOW_TRACKING_URI itself"
        )
    with running(config.place) as environment:
        say(f"MLflow: {environment['MLFLOW_TRACKING_URI']} · the experiment is '{config.name}' · Ctrl-C ends it")
        signal.pause()
