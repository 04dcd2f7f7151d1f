"""What is shown while an evolution runs: a progress bar, a line for what has ended, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from cycleqd.cli.output import answer, duration, errors, percent, plain
from cycleqd.cli.source import ConfigSource
from cycleqd.report.collect import compare
from cycleqd.report.verdicts import conclusion
from cycleqd.run.decisions import FAILED, Action, Cancel, Position, Replace, Retry, Run, Start, Wait
from cycleqd.run.driver import FRESH
from cycleqd.run.steps import Step
from cycleqd.search import measures
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage.objects import Store

_DOING = {
    "seed": "staging models and data",
    "select-parents": "selecting parents",
    "basis": "making the shared basis",
    "merge-and-mutate": "merging and mutating",
    "merge": "merging",
    "mutate": "mutating",
    "evaluate-child": "evaluating",
    "evaluate-models": "evaluating",
    "update-archives": "updating archives",
    "aggregate": "aggregating the best elites",
    "choose-final": "building the final model",
    "report": "drawing the report",
}


class TimeLeft(ProgressColumn):
    """The time left as it was last estimated, less what has passed since."""

    def __init__(self) -> None:
        super().__init__()
        self.until: float | None = None

    def tell(self, seconds: float | None) -> None:
        """Take up an estimate.

        Args:
            seconds: From now; None: unknown.
        """
        self.until = None if seconds is None else time.monotonic() + seconds

    def render(self, task: Task) -> Text:
        """ "about 12 min left", or that it is not known yet.

        Args:
            task: The bar's.
        """
        if task.finished:
            return Text("")
        if self.until is None:
            return Text("time left: known after the first generation")
        return Text(f"about {duration(max(0.0, self.until - time.monotonic()))} left")


class Display:
    """Shows what the driver does: a bar over the generations with the time left, and a line for each that ended.

    `run` is the run in flight on a cluster, as far as it is known.
    """

    def __init__(self, config: Config, look: Callable[[], State | None], left: Callable[[State], float | None]) -> None:
        """Draw nothing yet.

        Args:
            config: The evolution's.
            look: Reads the current snapshot.
            left: Estimates the seconds left from a snapshot, by what has finished.
        """
        self.config = config
        self.look, self.left = look, left
        state = look()
        self.shown = state.generation if state else 0
        self.time = TimeLeft()
        self.time.tell(left(state) if state else None)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("generations,"),
            self.time,
            console=errors,
        )
        self.bar = self.progress.add_task("starting", total=config.method.generations, completed=self.shown)
        self.step, self.doing = "", ""
        self.done: set[str] = set()
        self.before: Position | None = None
        self.run: Run | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def task(self, name: str, event: str) -> None:
        """A task of the running step began or ended; repeated calls change nothing.

        Args:
            name: The task's name in the pipeline; of an iteration with a number behind it.
            event: "started", "done" or "failed"; others are ignored.
        """
        kind = next((kind for kind in _DOING if name == kind or name.startswith(f"{kind}-")), None)
        if kind is None or name.endswith("-driver"):  # KFP's own pods are named so
            return
        if event == "started":
            self.doing = _DOING[kind]
        elif event == "done":
            self.done.add(name)
        self.progress.update(self.bar, description=self._description())

    def _description(self) -> str:
        """What is being done; in a step that moves the bar little or not at all, how many tasks of it are done, too."""
        if self.step not in ("seeding", "finalising"):
            return self.doing or self.step
        return f"{self.step}: {self.doing or 'starting'} ({len(self.done)} done)"

    def begins(self, step: str) -> None:
        """A step begins, or is found in flight.

        Args:
            step: The step's name.
        """
        if step != self.step:
            self.step, self.doing, self.done = step, "", set()
        self.progress.update(self.bar, description=self._description())

    def acts(self, action: Action, where: Position) -> None:
        """Name the step that is due beside the bar; print a line for what has ended or is out of the ordinary.

        Args:
            action: What the driver is about to do.
            where: Where the evolution stood when it decided that.
        """
        if self.before is not None and self.before != where and self.before.due is not None:
            self.ended(self.before.due)
        self.before = where
        match action:
            case Start(step):
                self.run = None
                self.begins(step.name)
            case Wait(run):
                self.begins(run.name)
                if run.id not in (run.name, self.run and self.run.id):  # on this machine a run has no other name
                    self._print(f"{run.name} is run {run.id}")
                self.run = run
            case Retry(run, pause):
                self.run = None  # nothing is in flight during the pause
                why = f": {plain(run.why)}" if run.why else ""
                of = f"{run.retries + 1} of {self.config.place.retries}"
                self._print(
                    f"run {run.name} ({run.id}) failed{why}; what failed in it runs again in {pause:.0f} s ({of})"
                )
            case Replace(run):
                self._print(replaced(run))
            case Cancel(run):
                self._print(cancelled(run))

    def ended(self, step: Step) -> None:
        """Move the bar to the snapshot's generation, and print a line about each new one.

        Args:
            step: The one whose records are complete now.
        """
        state = self.look()
        if state is None:
            return
        self.progress.update(self.bar, completed=state.generation)
        self.time.tell(self.left(state))
        if step.kind == "finalising":
            self._print("final model built and scored")
        elif step.kind == "seeding" or state.generation > self.shown:
            self._print(_line(state))
        self.shown = state.generation

    def warns(self, sentence: str) -> None:
        """Print the sentence above the bar.

        Args:
            sentence: Without a full stop.
        """
        self._print(f"warning: {plain(sentence)}")

    def _print(self, sentence: str) -> None:
        self.progress.console.print(Text(sentence))


def cancelled(run: Run) -> str:
    """Why a run is cancelled, as a sentence.

    Args:
        run: The newer of two runs of a step.
    """
    return f"run {run.id} is cancelled: an older run of {run.name} is in flight"


def replaced(run: Run) -> str:
    """Why a run is archived, as a sentence.

    Args:
        run: One that is stuck, or has ended and is outdated.
    """
    if run.stuck:
        why = f"is {run.state}, but nothing of it works: its workflow is gone, or it has had no pod for minutes"
    else:
        failed = f"failed{f': {plain(run.why)}' if run.why else ''}" if run.state == FAILED else f"is {run.state}"
        changed = "a new run is asked for" if run.outdated == FRESH else f"since then changed: {plain(run.outdated)}"
        why = f"{failed}; {changed}"
    return f"run {run.name} ({run.id}) {why}; it is archived, and a new one takes up what it had finished"


def _line(state: State) -> str:
    """A snapshot in one line: best per task and on average, filled cells, the newest children."""
    bests = state.bests
    parts = [f"{task} {percent(bests[task].scores[task])}" for task in state.tasks]
    parts.append(f"average {percent(states.average(states.best_average(state).scores))}")
    cells = sum(len(archive.elites) for archive in state.archives)
    done = f"generation {state.generation - 1:>4}" if state.generation else "seeding        "
    text = f"{done}  best: {'  '.join(parts)}  elites {cells}"
    newest = [child for child in state.children if child.generation == state.generation - 1]
    scores = "  ".join(f"{percent(states.average(child.scores))}" for child in newest)
    return f"{text}  children: {scores}" if newest else text


def summarise(config: Config, state: State) -> dict[str, Any]:
    """The evolution in figures.

    Args:
        config: As it was frozen.
        state: The snapshot.
    """
    best = states.best_average(state)
    return {
        "evolution": config.name,
        "generations": state.generation,
        "evaluations": state.evaluations,
        "stopped": states.should_stop(config, state),
        "best_average": {"model": best.model.id, "average": states.average(best.scores), "scores": dict(best.scores)},
        "best_per_task": {
            task: {"model": line.model.id, "score": line.scores[task]} for task, line in state.bests.items()
        },
        "measures": measures.measure(state),
    }


def conclude(config: Config, state: State, store: Store, source: ConfigSource, as_json: bool) -> None:
    """Print the summary of a complete evolution, whether it helped, and the commands that look at it.

    Args:
        config: As it was frozen.
        state: The last snapshot.
        store: The evolution.
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    helped = conclusion(compare(store))
    summary = {**summarise(config, state), "conclusion": helped}
    looks = " · ".join(f"cycleqd {look} {source.flags}" for look in ("models", "lineage final", "report"))
    done = f"done: {summary['generations']} generations, {summary['evaluations']} children evaluated"
    answer(as_json, summary, done, *([helped] if helped else []), f"look: {looks}")
