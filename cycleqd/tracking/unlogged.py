"""What is recorded in S3 and not in MLflow yet, and how it gets there.

A mark (`layout.unlogged`) is written before every record, and goes once that was logged. So what a killed task leaves,
or one that found MLflow away, is logged by the next task, or by `cycleqd repair`, which logs all there is again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from cycleqd.errors import UnavailableError
from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.evolution import current
from cycleqd.storage.finalising import finalised
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking.ending import Ending
from cycleqd.tracking.logbook import Logbook


def catch_up(settings: Settings, store: Store, config: Config, own: Iterable[str] = ()) -> None:
    """Log what a task recorded, and what others left; says so in a sentence where MLflow is away, and goes on.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        config: The frozen configuration.
        own: Folders of the task's records: they are logged whether or not they were before.
    """
    try:
        ending = log(settings, store, config, own)
        if ending is not None:
            ending.resume()
    except UnavailableError as error:
        sentence = f"warning: {error}; the next task logs what is missing there, or `cycleqd repair`"
        print(sentence, file=sys.stderr, flush=True)


def log(settings: Settings, store: Store, config: Config, own: Iterable[str] = ()) -> Ending | None:
    """Log these records and all marked ones; what sets the status of the runs, None where the evolution is complete.

    Args:
        settings: Where MLflow is.
        store: Objects of the evolution.
        config: The frozen configuration.
        own: Folders of records.

    Raises:
        UnavailableError: MLflow does not answer, or takes no more; the marks stay.
        ConflictError: the experiment of the evolution's name is another's.
    """
    marked = pending(store)
    folders, book = sorted({*own, *marked}, key=_order), Logbook(settings, store, config)
    for folder in folders:
        book.log(folder)
    ending = Ending(book)
    complete = store.exists(layout.FINAL_PLAN) and finalised(config, store, current(store)[1])
    if complete and (marked or not ending.ended()):
        ending.finish()
    store.delete(map(layout.unlogged, marked))
    return None if complete else ending


def pending(store: Store) -> list[str]:
    """Folders of the records that are not in MLflow yet.

    Args:
        store: Objects of the evolution.
    """
    marks = store.list(f"{layout.UNLOGGED}/")
    folders = [mark.removeprefix(f"{layout.UNLOGGED}/").removesuffix(".json") for mark in marks]
    return [folder for folder in folders if store.exists(_record(folder))]


def everything(store: Store) -> list[str]:
    """Folders of all records.

    Args:
        store: Objects of the evolution.
    """
    ends = ("/result.json", "/plan.json")
    return [key.rpartition("/")[0] for key in store.list("") if key.endswith(ends) and key != layout.FINAL_PLAN]


def _record(folder: str) -> str:
    """The key of the record that a mark speaks of; a task may have been killed before it was there."""
    number = layout.generation_of(folder)
    is_plan = number is not None and folder == layout.generation(number)
    return f"{folder}/plan.json" if is_plan else layout.result(folder)


def _order(folder: str) -> tuple[int, str]:
    """What creates runs first, then what makes models, their scores, and what ends runs."""
    match folder.split("/"):
        case [layout.SEED] | ["generations", _]:
            return 0, folder
        case [*_, "evaluations", _, _]:
            return 2, folder
        case [*_, "update"]:
            return 3, folder
    return 1, folder
