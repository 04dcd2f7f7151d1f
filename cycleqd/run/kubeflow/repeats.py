"""How often a step's run was repeated, in S3: a driver that is killed, or a second one, adds no repetitions.

A failure is claimed before its run is retried, by a conditional write that names the failure by the time at which the
run ended. So of two drivers one retries; and one that died between the claim and the call leaves a claim that the next
driver acts on, which costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from cycleqd.errors import IntegrityError
from cycleqd.run.decisions import CANCELING, FAILED, Run
from cycleqd.storage import run_layout
from cycleqd.storage.failures import find_failure
from cycleqd.storage.formats import decode, encode
from cycleqd.storage.objects import Store


@dataclass(frozen=True)
class Repeats:
    """`count` repetitions of a step, the latest of them of the run `run`, when it had failed at `failure`.

    `replaced`: that run was given up after them, and what a new one of the step has left is what it had.
    """

    run: str = ""
    count: int = 0
    failure: str = ""
    replaced: bool = False

    def applied_to(self, run: Run) -> Run:
        """The run with what this says about it. A claimed failure is not among the repetitions that came before it.

        Args:
            run: Of the step.
        """
        if run.id != self.run:
            return replace(run, retries=self.count if self.replaced else 0)
        claimed = run.state == FAILED and run.ended == self.failure
        retried = run.retried or (self.count > 0 and not self.replaced)
        return replace(run, retries=self.count - claimed, claimed=claimed, retried=retried)

    def claimed(self, run: Run) -> Repeats:
        """What is to be recorded before a run from `applied_to` is retried.

        Args:
            run: One that failed.
        """
        return Repeats(run.id, run.retries + 1, run.ended)


class Ledger:
    """The repetitions of an evolution's steps. A claim rests on what was last read of the step."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[str, tuple[Repeats, str]] = {}

    def with_repeats(self, runs: Iterable[Run]) -> list[Run]:
        """Runs of steps with their repetitions and, if they failed, with the failures of their tasks.

        Args:
            runs: Of any steps.
        """
        found = list(runs)
        begun = {run.name for run in found if run.live or run.state in (FAILED, CANCELING)}
        self._read = {name: self._find(name) for name in begun}
        return [self._with_repeats(run) if run.name in begun else run for run in found]

    def _with_repeats(self, run: Run) -> Run:
        run = self._read[run.name][0].applied_to(run)
        return replace(run, failure=find_failure(self.store, run.id)) if run.state == FAILED else run

    def claim(self, run: Run) -> bool:
        """Count a repetition of a failed run. False: another driver was faster.

        Args:
            run: One from `with_repeats`.
        """
        return run.claimed or self._write(run.name, self._read[run.name][0].claimed(run))

    def give_up(self, run: Run) -> bool:
        """Have the step's next run take over what this one has left, or have all where it was outdated: corrected.

        Args:
            run: One from `with_repeats`.

        Returns:
            False when another driver was faster.
        """
        record = self._read.get(run.name, (Repeats(), ""))[0]
        handed_on = replace(record, replaced=True) if record.run == run.id else record
        after = Repeats() if run.outdated else handed_on
        return after == record or self._write(run.name, after)

    def _write(self, step: str, record: Repeats) -> bool:
        key, etag, data = run_layout.repeats(step), self._read[step][1], encode(asdict(record))
        return self.store.replace(key, data, etag) if etag else self.store.create(key, data)

    def _find(self, step: str) -> tuple[Repeats, str]:
        key = run_layout.repeats(step)
        found = self.store.find_with_etag(key)
        if found is None:
            return Repeats(), ""
        try:
            return Repeats(**decode(key, found[0], self.store.url(key))), found[1]
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                f"{self.store.url(key)} is no record of a step's repetitions ({error}); delete it to count from 0"
            ) from error
