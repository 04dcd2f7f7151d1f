"""All that a report shows, as plain frozen records: collected once (see collect), then only rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.grid import is_flat
from cycleqd.search.records import Child, average
from cycleqd.search.state import State

Split = Literal["search", "test"]
Results = Mapping[Split, Mapping[str, Mapping[str, "Tally"]]]
"""split → model id → task → verdicts; what was not evaluated is absent."""


@dataclass(frozen=True)
class Tally:
    """One model's verdicts on one task and split: a "1" or "0" a sample, the same samples for every model."""

    verdicts: str

    @property
    def passed(self) -> int:
        """How many samples the model passed."""
        return self.verdicts.count("1")

    @property
    def total(self) -> int:
        """The number of samples that it was scored on."""
        return len(self.verdicts)

    @property
    def score(self) -> float:
        """The share of samples passed, in [0, 1]."""
        return self.passed / self.total


@dataclass(frozen=True)
class Cost:
    """What the evolution took. evaluations: one model on one task and split. seconds: wall seconds by stage.

    written, read: bytes of checkpoints that stages wrote and read; stored: bytes in the bucket now.
    """

    evaluations: int
    samples: int
    seconds: Mapping[str, float]
    written: int
    read: int
    stored: int


@dataclass(frozen=True)
class Origin:
    """When, by what and where the evolution was computed, as its stages recorded it.

    began, ended: milliseconds since the epoch. versions: of this code; libraries: with their versions; machines: their
    processors with the instruction sets that matter, and devices; images: of tasks in containers.
    """

    began: int
    ended: int
    versions: tuple[str, ...]
    libraries: tuple[str, ...]
    machines: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A model that the report compares: its id, what a reader calls it, and its part in the story."""

    id: str
    label: str
    kind: Literal["base", "expert", "naive", "tuned", "best", "aggregated", "final"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What an evolution's models score, at its newest snapshot.

    tuned: id of the task arithmetic with the best λ on the search split; None where it is not measured.
    """

    config: Config
    state: State
    results: Results
    tuned: str | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The K search tasks."""
        return self.state.tasks

    @property
    def best_expert(self) -> tuple[str, float]:
        """The expert to beat and its average on the search split: full ones instead of adapters extracted from them."""
        found = {}
        for expert in self.state.experts:
            full = expert.model.id.replace("expert-", "source-", 1)
            tallies = self.scored("search", full) if full in self.config.extracted else None
            scores = expert.scores if tallies is None else {task: tally.score for task, tally in tallies.items()}
            found[expert.model.id if tallies is None else full] = average(scores)
        return max(found.items(), key=lambda item: item[1])

    def scored(self, split: Split, model: str) -> Mapping[str, Tally] | None:
        """A model's verdicts on all search tasks; None unless every one of them was evaluated.

        Args:
            split: Which samples.
            model: Model id.
        """
        found = self.results.get(split, {}).get(model, {})
        return {task: found[task] for task in self.tasks} if set(self.tasks) <= set(found) else None


@dataclass(frozen=True, kw_only=True)
class ReportData(Compared):
    """All that a report shows of an evolution.

    recipe: (model id, β) of the final model, empty before finalising; final_snapshot: the snapshot it was built from.
    best: id of the single living model with the best search average. children: by id, at least the children among
    recipe and best and all their ancestors. url: where the evolution's objects are.
    """

    recipe: tuple[tuple[str, float], ...]
    final_snapshot: int | None
    best: str
    children: Mapping[str, Child]
    cost: Cost
    origin: Origin
    url: str

    @property
    def method(self) -> str:
        """What readers call the method."""
        return algorithm(self.config).label

    @property
    def watched(self) -> tuple[str, ...]:
        """The tasks that are only reported."""
        return tuple(name for name, task in self.config.tasks.items() if task.report_only)

    @property
    def flat(self) -> tuple[str, ...]:
        """Search tasks on which every expert scores the same: they give the search no information."""
        return tuple(task for task in self.tasks if is_flat(task, self.state.experts))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The models to compare, weakest claim first. The best child is left out when it is an expert, or final."""
        rows = [Row("base", "Base", "base")]
        for name, expert in self.config.models.experts.items():
            cut = "" if expert.rank is None else f", rank {expert.rank}"
            rows.append(Row(f"expert-{name}", f"{name} expert{cut}", "expert"))
            rows += [Row(f"source-{name}", f"{name} expert, full", "expert")] if cut else []
        rows += [Row("naive", "Naive merge of all experts", "naive")]
        if self.tuned is not None:
            tried = len(self.config.lambdas)
            label = f"Task arithmetic, λ = {self.config.lambdas[self.tuned]:g} (best of {tried} on the search split)"
            rows.append(Row(self.tuned, label, "tuned"))
        makes = self.config.method.final.makes
        if makes == "aggregate" or (makes == "either" and len(self.recipe) > 1):
            if self.best in self.children:
                rows.append(Row(self.best, f"Evolution's best single model ({self.best})", "best"))
            rows.append(Row("final", f"{self.method}, aggregated", "final"))
        else:
            parts = ", ".join(name for name, _ in self.recipe)
            made = f"of {parts}" if makes == "other" else f"best single model ({parts})"
            rows.append(Row("aggregated", "Softmax aggregate of the best elites", "aggregated"))
            rows.append(Row("final", f"{self.method}, {made}", "final"))
        return tuple(row for row in rows if any(row.id in by_model for by_model in self.results.values()))
