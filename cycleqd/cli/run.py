"""cycleqd run: the driver with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from cycleqd.cli.output import console, errors, percent, plain, print_json
from cycleqd.cli.session import connect
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.containers.launcher import Containers
from cycleqd.run.decisions import Action, Standing, Start, Wait
from cycleqd.run.driver import Driver, standing
from cycleqd.run.local.forks import Forks
from cycleqd.run.local.runner import LocalRunner, alone
from cycleqd.run.local.services import running
from cycleqd.run.steps import Step, find_state
from cycleqd.search import measures
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage.frozen import adopt

_DOING = {
    "seed": "staging models and data",
    "select-parents": "selecting parents",
    "merge": "merging and mutating",
    "mutate": "mutating",
    "evaluate-child": "evaluating",
    "evaluate-models": "evaluating",
    "update-archives": "updating archives",
    "aggregate": "aggregating the best elites",
    "choose-final": "building the final model",
}


def run(source: ConfigSource, as_json: bool) -> None:
    """Run to the end. On Ctrl-C everything started here is ended, and said what is saved.

    Raises InvalidInputError where the place is a cluster: other commands run the evolution there.
    """
    config = source.load()
    if config.place.runner == "kubeflow":
        raise InvalidInputError(
            f"place.runner is kubeflow: `cycleqd drive {source.flags}` runs '{config.name}' on the cluster,"
            " `cycleqd run --runner local` on this machine"
        )
    with alone(config), _launcher(config) as launcher, running(config.place) as environment:
        session = connect(config, environment)
        config = adopt(session.store, config)
        store = session.store
        try:
            with (
                Display(config, partial(find_state, store)) as display,
                LocalRunner(config, store, session.environment, display.task, launcher) as runner,
            ):
                Driver(runner, partial(standing, config, store), told=display.told, outage=0).drive()
        except (KeyboardInterrupt, SystemExit):
            errors.print(Text(saved(config, find_state(store), source)))
            raise
        summary = summarise(config, session.state())
    if as_json:
        print_json(summary)
        return
    console.print(Text(f"done: {summary['generations']} generations, {summary['evaluations']} children evaluated"))
    looks = " · ".join(f"cycleqd {look} {source.flags}" for look in ("models", "lineage final", "report"))
    console.print(Text(f"look: {looks}"))


def _launcher(config: Config) -> Forks | Containers:
    """Where tasks run; what takes time to start does so while the services start."""
    return Containers(config) if config.place.runner == "docker" else Forks()


def saved(config: Config, state: State | None, source: ConfigSource) -> str:
    """What an interrupted run leaves, and how to go on."""
    kept = (
        "nothing is complete yet" if state is None else f"{state.generation} of {config.method.generations} generations"
    )
    return f"\nstopped; saved: {kept}, and all finished parts of the next. Go on with: cycleqd run {source.flags}"


def summarise(config: Config, state: State) -> dict[str, Any]:
    """The evolution in figures."""
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


class Display:
    """Shows what the driver does: a bar over the generations with the time left, and a line for each that ended."""

    def __init__(self, config: Config, look: Callable[[], State | None]) -> None:
        """`look` reads the current snapshot."""
        self.config = config
        self.look = look
        state = look()
        self.shown = state.generation if state else 0
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("generations, left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=errors,
        )
        self.bar = self.progress.add_task("starting", total=config.method.generations, completed=self.shown)
        self.step, self.doing = "", ""
        self.done: set[str] = set()
        self.before: Standing | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def task(self, name: str, event: str) -> None:
        """A task of the running step began or ended: may be told again."""
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
        """A step begins, or is found in flight."""
        if step != self.step:
            self.step, self.doing, self.done = step, "", set()
        self.progress.update(self.bar, description=self._description())

    def told(self, action: Action, where: Standing) -> None:
        """Name the step that is due beside the bar, and tell of the one that has ended since."""
        if self.before is not None and self.before != where and self.before.due is not None:
            self.ended(self.before.due)
        self.before = where
        if isinstance(action, Start):
            self.begins(action.step.name)
        elif isinstance(action, Wait):
            self.begins(action.run.name)

    def ended(self, step: Step) -> None:
        """Move the bar to the snapshot's generation, and print a line about each new one."""
        state = self.look()
        if state is None:
            return
        self.progress.update(self.bar, completed=state.generation)
        if step.kind == "finalising":
            self.progress.console.print(Text("final model built and scored"))
        elif step.kind == "seeding" or state.generation > self.shown:
            self.progress.console.print(Text(line(state)))
        self.shown = state.generation

    def warns(self, sentence: str) -> None:
        """Print the sentence above the bar."""
        self.progress.console.print(Text(f"warning: {plain(sentence)}"))


def line(state: State) -> str:
    """A snapshot in one line: best per task and on average, filled cells, the newest children."""
    bests = state.bests
    parts = [f"{task} {percent(bests[task].scores[task])}" for task in state.tasks]
    parts.append(f"average {percent(states.average(states.best_average(state).scores))}")
    cells = sum(len(archive.elites) for archive in state.archives)
    text = f"generation {state.generation:>4}  best: {'  '.join(parts)}  elites {cells}"
    newest = [child for child in state.children if child.generation == state.generation - 1]
    scores = "  ".join(f"{percent(states.average(child.scores))}" for child in newest)
    return f"{text}  children: {scores}" if newest else text
