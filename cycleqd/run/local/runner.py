"""Running a step on this machine: its compiled pipeline, a process or a container a task.

Tasks end with their driver, however that ends; the temporary folder of a run is removed by the driver, or by the next
driver when that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cycleqd.errors import CycleQDError, UnavailableError, named
from cycleqd.run.graph import Graph, Task, Values
from cycleqd.run.steps import Step
from cycleqd.search.config import Config
from cycleqd.storage.failures import FAILURE
from pipelines.definitions import write

Follow = Callable[[str, str], None]
"""Called with the name of a task and "started", "done" or "failed", in any thread."""


class Launcher(Protocol):
    """Where tasks run."""

    def run(self, task: Task, arguments: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> int:
        """Run a task to its end: its exit code.

        `arguments` are the task's own with its inputs filled in; `folder` is its own, in which its outputs are to be;
        its output is appended to `log`. Raises CycleQDError when the task cannot be run.
        """

    def end(self) -> None:
        """End all tasks that run, and begin no more."""


class LocalRunner:
    """Runs steps, each task where the launcher runs it."""

    def __init__(self, config: Config, environment: Mapping[str, str], follow: Follow, launcher: Launcher) -> None:
        """`environment`: what is added to this process' own for tasks."""
        self.config = config
        self.environment = environment
        self.follow = follow
        self.launcher = launcher
        self.folder = Path(config.place.folder).resolve() / "runs" / config.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: Step) -> Path:
        """The step's log file."""
        return self.folder / f"{step.name}.log"

    def finished(self, step: Step) -> bool:
        """Whether a run of this step on this machine ended well, cleaning and logging included."""
        note = self._note(step)
        return note.exists() and note.read_text() == self._evolution()

    def _note(self, step: Step) -> Path:
        """The file that says of which evolution the step's last run here ended well."""
        return self.folder / f"{step.name}.done"

    def _evolution(self) -> str:
        """What tells evolutions of one name apart: where their objects are, and all that decides their results."""
        endpoint = {**os.environ, **self.environment}.get("AWS_ENDPOINT_URL", "")
        return json.dumps([endpoint, self.config.place.bucket, self.config.frozen()])

    def run(self, step: Step, arguments: Mapping[str, Any]) -> None:
        """Run a step to its end. Raises the error of the task that failed."""
        self._note(step).unlink(missing_ok=True)
        self.log(step).write_text("")
        with self._temporary() as temporary, ThreadPoolExecutor(1) as pool:
            graph = Graph(self._compiled(step, temporary), partial(self._launch, step, temporary))
            try:
                pool.submit(graph.run, arguments).result()
            except (KeyboardInterrupt, SystemExit):
                self.launcher.end()
                raise
        self._note(step).write_text(self._evolution())

    def _launch(self, step: Step, temporary: Path, task: Task) -> Values:
        """Run a task, as often as the pipeline asks, in a folder of its own; what it returned."""
        folder = Path(tempfile.mkdtemp(dir=temporary, prefix="task-"))
        failure, returned = folder / "failure.json", folder / "outputs.json"
        files = {name: {"outputFile": str(folder / name)} for name in task.outputs}
        known = {
            "inputs": {"parameterValues": dict(task.inputs)},
            "outputs": {"parameters": files, "outputFile": str(returned)},
        }
        arguments = [json.dumps(known) if part == "{{$}}" else part for part in task.arguments]
        environment = {**self.environment, FAILURE: str(failure)}
        self._tell(step, task, "started")
        code = self.launcher.run(task, arguments, folder, self.log(step), environment)
        if code or not returned.exists():
            self._tell(step, task, "failed")
            raise _error(failure) or UnavailableError(
                f"task '{task.name}' of {step.name} ended with exit code {code} and no reason; read {self.log(step)}"
            )
        self._tell(step, task, "done")
        outputs: Values = json.loads(returned.read_text()).get("parameterValues", {})
        return outputs

    def _tell(self, step: Step, task: Task, event: str) -> None:
        with self.log(step).open("a") as log:
            log.write(f"task '{task.name}': {event}\n")
        self.follow(task.name, event)

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
