"""How an evolution ends in MLflow: complete, with its report; stopped; and how it goes on after that."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from cycleqd.errors import ConflictError
from cycleqd.storage.evolution import current
from cycleqd.storage.finalising import scored_models
from cycleqd.tracking.logbook import Logbook
from cycleqd.tracking.runs import EVOLUTION
from cycleqd.tracking.scores import summary
from cycleqd.tracking.tracker import KEY

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


class Ending:
    """Sets what MLflow shows as the status of an evolution's runs."""

    def __init__(self, book: Logbook) -> None:
        """Ask nothing yet.

        Args:
            book: What the evolution's pages are written by.
        """
        self.book, self.runs, self.tracker = book, book.runs, book.tracker

    def ended(self) -> bool:
        """Whether the evolution's run is complete."""
        return not self._found(f"tags.`{KEY}` = '{EVOLUTION}' AND attributes.status != '{FINISHED}'")

    def finish(self) -> None:
        """End the runs of a finalised evolution: the scored models' first, its own last, with the report."""
        store, config = self.book.store, self.book.config
        models = scored_models(config, store, current(store)[1])
        assert models is not None, "it is finalised"
        end = max(self.book.end(model) for model in models)
        for split in ("search", "test"):
            whole = summary(store, config, "final", split)
            if whole is not None:
                metrics = {f"final_{name}": value for name, value in whole.metrics(split).items()}
                self.tracker.log(self.runs.evolution, time=whole.time, metrics=metrics)
        self._report()
        for run in self._found(f"attributes.status = '{RUNNING}'"):
            if run != self.runs.evolution:  # nothing will go on with it: a generation that a stop rule cut off
                self.tracker.end(run, end, KILLED)
        self.tracker.end(self.runs.evolution, end)

    def _report(self) -> None:
        """The report and its pictures as artifacts of the evolution's run."""
        from cycleqd.report.write import run

        with tempfile.TemporaryDirectory() as folder:
            try:
                run(self.book.store, Path(folder))
            except ConflictError:  # scores under other conditions cannot be compared: there is no report
                return
            self.tracker.files(self.runs.evolution, Path(folder), "report")

    def stop(self, status: str) -> None:
        """Say of what is running that it has ended now.

        Args:
            status: FAILED or KILLED.
        """
        for run in self._found(f"attributes.status = '{RUNNING}'"):
            self.tracker.end(run, time.time_ns() // 1_000_000, status)

    def resume(self) -> None:
        """Say of what was stopped that it goes on, and so of an evolution that was complete and no longer is."""
        for run in self._found(f"attributes.status != '{RUNNING}' AND attributes.status != '{FINISHED}'"):
            self.tracker.resume(run)
        if self.ended():
            self.tracker.resume(self.runs.evolution)

    def _found(self, condition: str) -> list[str]:
        return [run.info.run_id for run in self.tracker.search(self.runs.experiment, condition)]
