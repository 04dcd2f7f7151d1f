"""What commands tell MLflow: how an evolution ended here, and what tasks could not log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cycleqd.errors import CycleQDError, UnavailableError
from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking import unlogged
from cycleqd.tracking.ending import FAILED, KILLED, Ending
from cycleqd.tracking.logbook import Logbook


@contextlib.contextmanager
def told(settings: Settings, store: Store) -> Iterator[None]:
    """Drive an evolution whose tasks end with this process; where they end early, MLflow shows them FAILED or KILLED.

    Args:
        settings: Where MLflow is.
        store: The evolution.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        stopped(settings, store, KILLED)
        raise
    except CycleQDError:
        stopped(settings, store, FAILED)
        raise


def stopped(settings: Settings | None, store: Store, status: str) -> None:
    """Say in MLflow of what is running that it has ended; nothing where MLflow is away: `repair` says it later.

    Args:
        settings: Where MLflow is; None where this machine does not know.
        store: The evolution.
        status: FAILED or KILLED.
    """
    with contextlib.suppress(UnavailableError):
        if settings is not None and store.exists(layout.SEED_MLFLOW):
            Ending(Logbook(settings, store, load_config(store))).stop(status)


def finish(settings: Settings | None, store: Store) -> UnavailableError | None:
    """Log what tasks left; why that cannot be done, in a sentence.

    Args:
        settings: Where MLflow is; None where this machine does not know.
        store: An evolution that is complete.
    """
    left = unlogged.pending(store)
    if not left:
        return None
    try:
        if settings is None:
            raise UnavailableError("MLFLOW_TRACKING_URI is not set here; set it")
        unlogged.log(settings, store, load_config(store))
    except UnavailableError as error:
        return UnavailableError(f"{len(left)} records are not in MLflow yet: {error}; then `cycleqd repair` logs them")
    return None


def repair(settings: Settings, store: Store, config: Config, in_flight: bool) -> int:
    """Log all records, and end what nothing works on; how many records there are.

    Args:
        settings: Where MLflow is.
        store: The evolution.
        config: As it was frozen.
        in_flight: Whether something works on the evolution.

    Raises:
        UnavailableError: MLflow does not answer, or takes no more.
    """
    records = unlogged.everything(store)
    ending = unlogged.log(settings, store, config, records)
    if ending is not None:
        ending.resume() if in_flight else ending.stop(KILLED)
    return len(records)
