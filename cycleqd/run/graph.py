"""Running a compiled pipeline on this machine: its tasks in their order, loops, and what tasks hand to one another.

It reads what KFP's compiler writes (its intermediate representation); of that, what our pipelines use: parameters,
pipelines within pipelines, loops over a list with a limit, collected outputs. How a task runs is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from cycleqd.errors import UnavailableError

Values = Mapping[str, Any]
"""Parameters or outputs by name; JSON values."""


@dataclass(frozen=True)
class GraphTask:
    """A task whose inputs are known.

    name: as the pipeline calls it, once for all iterations of a loop. image: the container image of its stage. command:
    the program, whose last part is the source of the task's function. arguments: the program's; "{{$}}" among them
    stands for inputs and outputs as KFP's ExecutorInput in JSON. outputs: names of the values that it returns.
    """

    name: str
    image: str
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    inputs: Values
    outputs: tuple[str, ...]


class Launcher(Protocol):
    """Where tasks run."""

    def run(
        self, task: GraphTask, arguments: list[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> int:
        """Run a task to its end: its exit code, 128 and more for a signal that killed it.

        Args:
            task: Where its program and its image come from.
            arguments: The task's own with its inputs filled in.
            folder: The task's own, empty; its outputs are to be there.
            log: What the task prints is appended to it.
            environment: What is added to this process' own.

        Raises:
            UnavailableError: The task cannot be run.
        """

    def end(self) -> None:
        """End all tasks that run, and begin no more."""


class Graph:
    """A compiled pipeline and what runs its tasks."""

    def __init__(self, spec: Mapping[str, Any], launch: Callable[[GraphTask], Values]) -> None:
        """`spec`: the pipeline's document. `launch` runs a task to its end and returns its outputs, in any thread."""
        self.root = spec["root"]
        self.components = spec["components"]
        self.executors = spec["deploymentSpec"]["executors"]
        self.launch = launch
        self._failed = Event()

    def run(self, arguments: Values) -> None:
        """Run the pipeline to its end.

        When a task fails no task that depends on it begins, nor a further iteration; what runs is waited for. Raises
        what `launch` raised.

        Args:
            arguments: The pipeline's parameters; one that is left out has its default.
        """
        self._dag(self.root, _with_defaults(self.root, arguments))

    def _dag(self, component: Mapping[str, Any], inputs: Values) -> Values:
        """Run the tasks of a pipeline, as many at a time as are ready; its outputs."""
        tasks = component["dag"]["tasks"]
        order = TopologicalSorter({name: task.get("dependentTasks", ()) for name, task in tasks.items()})
        order.prepare()
        made: dict[str, Values] = {}
        running: dict[Future[Values], str] = {}
        with ThreadPoolExecutor(len(tasks)) as pool:
            while order.is_active():
                for name in order.get_ready():
                    running[pool.submit(self._task, name, tasks[name], inputs, dict(made))] = name
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(ended)
                    made[name] = ended.result()
                    order.done(name)
        outputs = component["dag"].get("outputs", {}).get("parameters", {})
        sources = {name: output["valueFromParameter"] for name, output in outputs.items()}
        return {name: made[source["producerSubtask"]][source["outputParameterKey"]] for name, source in sources.items()}

    def _task(self, name: str, task: Mapping[str, Any], inputs: Values, made: Mapping[str, Values]) -> Values:
        """Run a task of a pipeline, which may be a loop: then its outputs are lists, in the order of the items."""
        component = self.components[task["componentRef"]["name"]]
        sources = task.get("inputs", {}).get("parameters", {})
        given = {key: _value(source, inputs, made) for key, source in sources.items()}
        if "parameterIterator" not in task:
            return self._one(name, component, given)
        loop = task["parameterIterator"]
        items = given[loop["items"]["inputParameter"]]
        limit = task.get("iteratorPolicy", {}).get("parallelismLimit") or len(items)

        def iterate(item: Any) -> Values:
            if self._failed.is_set():  # an earlier item's task, and its error is what the caller sees
                raise CancelledError
            return self._one(name, component, given | {loop["itemInput"]: item})

        with ThreadPoolExecutor(max(1, limit)) as pool:
            ended = list(pool.map(iterate, items))
        outputs = component.get("outputDefinitions", {}).get("parameters", {})
        return {key: [one[key] for one in ended] for key in outputs}

    def _one(self, name: str, component: Mapping[str, Any], given: Values) -> Values:
        inputs = _with_defaults(component, given)
        if "dag" in component:
            return self._dag(component, inputs)
        container = self.executors[component["executorLabel"]]["container"]
        outputs = component.get("outputDefinitions", {}).get("parameters", {})
        command, arguments = tuple(container["command"]), tuple(container["args"])
        try:
            return self.launch(GraphTask(name, container["image"], command, arguments, inputs, tuple(outputs)))
        except BaseException:
            self._failed.set()
            raise


def _with_defaults(component: Mapping[str, Any], given: Values) -> Values:
    """A component's parameters, defaults filled in. Whole numbers, which the compiler writes as 0.0, are such again."""
    found = {}
    for name, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
        value = given[name] if name in given else definition["defaultValue"]
        found[name] = int(value) if definition["parameterType"] == "NUMBER_INTEGER" else value
    return found


def _value(source: Mapping[str, Any], inputs: Values, made: Mapping[str, Values]) -> Any:
    """A task's parameter: the pipeline's own, a constant, or another task's output."""
    match source:
        case {"componentInputParameter": name}:
            return inputs[name]
        case {"runtimeValue": {"constant": value}}:
            return value
        case {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}:
            return made[task][key]
    raise UnavailableError(f"a parameter is passed by {source}, which only a cluster can; run the pipeline on Kubeflow")
