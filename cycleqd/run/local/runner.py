"""Running a step on this machine: its compiled pipeline, a process or a container a task.

Tasks end with their driver, however that ends; the temporary folder of a run is removed by the driver, or by the next
driver when that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cycleqd.errors import ConflictError, CycleQDError, UnavailableError, named
from cycleqd.run.decisions import RUNNING, SUCCEEDED, Run
from cycleqd.run.driver import Runner, TaskLog
from cycleqd.run.graph import Graph, GraphTask, Launcher, Values
from cycleqd.run.local.logs import StepLogs, find_logs
from cycleqd.run.local.services import writable
from cycleqd.run.steps import Step, arguments, find_state, previous_step
from cycleqd.search.config import Config
from cycleqd.storage.failures import FAILURE
from cycleqd.storage.objects import Store
from pipelines.definitions import write

Follow = Callable[[str, str], None]
"""Called with the name of a task and "started", "done" or "failed", in any thread."""


def folder(config: Config) -> Path:
    """Where this machine keeps what it knows of an evolution's runs.

    Args:
        config: The evolution's configuration.
    """
    return Path(config.place.folder).resolve() / "runs" / config.name


def logs(config: Config, step: str) -> list[TaskLog]:
    """The logs of a step's last run on this machine, the oldest first; none where it has not run here.

    Args:
        config: The evolution's.
        step: The step's name.
    """
    return find_logs(folder(config) / Path(step.removeprefix(f"{config.name}-")).name)


def logged(config: Config) -> str:
    """The steps that have logs on this machine, as a list for a sentence.

    Args:
        config: The evolution's configuration.
    """
    return ", ".join(sorted(path.parent.name for path in folder(config).glob("*/0001-*.json"))) or "none"


class LocalRunner(Runner):
    """Runs one step at a time, each task where the launcher runs it. It repeats nothing by itself: what failed may be
    started again.

    A context: what runs when it ends is ended.
    """

    def __init__(
        self, config: Config, store: Store, environment: Mapping[str, str], follow: Follow, launcher: Launcher
    ) -> None:
        """`environment`: what is added to this process' own for tasks."""
        self.config = config
        self.store = store
        self.environment = environment
        self.follow = follow
        self.launcher = launcher
        self.folder = writable(folder(config))
        self._thread = ThreadPoolExecutor(1)
        self._made: dict[str, tuple[Run, Future[None]]] = {}

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self.launcher.end()
        self._thread.shutdown()

    def runs(self, names: Iterable[str]) -> list[Run]:
        """This process' own, and another's success of the step that made the current snapshot.

        Another's success of any other step is worth nothing: its records are gone.
        """
        wanted = set(names)
        found = [run for run, _ in self._made.values() if run.name in wanted]
        before = previous_step(self.config, find_state(self.store))
        if before is not None and before.name in wanted - set(self._made) and self.finished(before):
            found.append(Run(before.name, before.name, SUCCEEDED, datetime.fromtimestamp(0, UTC)))
        return found

    def start(self, step: Step) -> Run:
        """Start a run of the step, under its name."""
        parameters = arguments(self.config, self.store, step, find_state(self.store))
        self._note(step).unlink(missing_ok=True)
        logs = StepLogs(self.folder / step.name)
        run = Run(step.name, step.name, RUNNING, datetime.now(UTC))
        self._made[run.id] = run, self._thread.submit(self._run, step, parameters, logs)
        return run

    def wait(self, run: Run) -> None:
        """Return when the run has ended. Raises the error of the task that failed."""
        made, ended = self._made[run.id]
        try:
            ended.result()
        except CycleQDError:
            del self._made[run.id]
            raise
        self._made[run.id] = replace(made, state=SUCCEEDED), ended

    def cancel(self, run: Run) -> None:
        """End all that runs; nothing more begins."""
        self.launcher.end()

    def finished(self, step: Step) -> bool:
        """Whether a run of this step on this machine ended well, cleaning and logging included.

        Args:
            step: Of this evolution.
        """
        note = self._note(step)
        return note.exists() and note.read_text() == self._evolution()

    def _note(self, step: Step) -> Path:
        """The file that says of which evolution the step's last run here ended well."""
        return self.folder / f"{step.name}.done"

    def _evolution(self) -> str:
        """What distinguishes evolutions of one name: where their objects are, and all that decides their results."""
        endpoint = {**os.environ, **self.environment}.get("AWS_ENDPOINT_URL", "")
        return json.dumps([endpoint, self.config.place.bucket, self.config.frozen()])

    def _run(self, step: Step, parameters: Mapping[str, Any], logs: StepLogs) -> None:
        """Run the step's pipeline to its end."""
        with self._temporary() as temporary:
            launch = partial(self._launch, step, temporary, logs)
            Graph(self._compiled(step, temporary), launch).run(parameters)
        self._note(step).write_text(self._evolution())

    def _launch(self, step: Step, temporary: Path, logs: StepLogs, task: GraphTask) -> Values:
        """Run a task, as often as the pipeline asks, in a folder of its own; what it returned."""
        own = Path(tempfile.mkdtemp(dir=temporary, prefix="task-"))
        failure, returned = own / "failure.json", own / "outputs.json"
        files = {name: {"outputFile": str(own / name)} for name in task.outputs}
        known = {
            "inputs": {"parameterValues": dict(task.inputs)},
            "outputs": {"parameters": files, "outputFile": str(returned)},
        }
        filled = [json.dumps(known) if part == "{{$}}" else part for part in task.arguments]
        environment = {**self.environment, FAILURE: str(failure)}
        self.follow(task.name, "started")
        with logs.written(task) as log:
            code = self.launcher.run(task, filled, own, log, environment)
            if code or not returned.exists():
                self.follow(task.name, "failed")
                raise _error(failure) or UnavailableError(
                    f"task '{task.name}' of {step.name} ended with exit code {code} and no reason; read {log}"
                )
        self.follow(task.name, "done")
        outputs: Values = json.loads(returned.read_text()).get("parameterValues", {})
        return outputs

    def _compiled(self, step: Step, temporary: Path) -> dict[str, Any]:
        import yaml

        package = temporary / "pipeline.yaml"
        write(self.config, step.kind, step.count, package)
        spec: dict[str, Any] = next(iter(yaml.safe_load_all(package.read_text())))
        return spec

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A temporary folder with a short path (sockets are made in it), free of what a killed run left."""
        owner = self.folder / "temporary"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(owner.read_text(), ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix="cycleqd-run-"))
        owner.write_text(str(path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            owner.unlink(missing_ok=True)


def _error(file: Path) -> CycleQDError | None:
    """The error that a task recorded, None when it recorded none of ours."""
    if not file.exists():
        return None
    failure = json.loads(file.read_text())
    kind = named(failure["kind"])
    return kind(failure["sentence"]) if kind is not None else None


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
    """Hold the evolution for this process among those that share `place.folder`.

    Drivers elsewhere need no lock: they meet in S3, where the second one adopts the first one's plan.

    Args:
        config: The evolution's configuration.

    Raises:
        ConflictError: Another process holds it: its id is named.
    """
    with (writable(folder(config)) / "driver.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ConflictError(
                f"evolution '{config.name}' is being run by process {holder} on this machine;"
                " wait for it, or watch it with: cycleqd status"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
