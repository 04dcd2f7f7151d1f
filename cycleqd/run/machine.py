"""What an evolution needs of this machine, and what to do where it is missing: engine, device, programs, folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.evaluation.engines import load_engine
from cycleqd.evaluation.task import Workspace, load_task
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.search.tasks import TaskConfig

_PACKAGES = {"transformers": "torch, transformers", "vllm": "vllm", "auto": "torch"}
_INSTALL = {
    "transformers": "pip install 'cycleqd[run]'",
    "vllm": "install vLLM as README.md says, or set evaluation.engine: transformers",
    "auto": "pip install 'cycleqd[run]'",
}
_SECONDS = 300.0  # a first import of vLLM on a slow disk
_ROOM = 1.2  # of a model's bytes: what generating takes beside its weights, at the least
_PROBE = """
import {packages}
import torch
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    print("cuda", total)
else:
    print("cpu", 0)
"""


@dataclass(frozen=True)
class Need:
    """One thing that is needed: `found` is what is there, `missing` what is not, as a sentence that says what to do."""

    name: str
    found: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Device:
    """Where the engine computes: "cuda", "cpu", or "" where that is not known; and its memory in bytes."""

    kind: str
    memory: int


def needs(config: Config, begin: Callable[[str], None]) -> list[Need]:
    """All that can be looked at without data and models; nothing where all work is done on a cluster.

    Args:
        config: The configuration.
        begin: Called with each part before it is looked at.
    """
    found, _ = host(config, begin)
    for name, task in config.tasks.items() if config.place.runner == "local" else ():
        begin(f"task '{name}'")
        found += _task(name, task)
    return found


def host(config: Config, begin: Callable[[str], None]) -> tuple[list[Need], Device]:
    """What work needs whatever the tasks are, and the device.

    On a cluster nothing is needed here; with containers Docker is, and the images hold the rest.

    Args:
        config: The configuration.
        begin: Called with each part before it is looked at.
    """
    nowhere = Device("", 0)
    if config.place.runner == "kubeflow":
        return [], nowhere
    begin("this machine")
    found = [*_folders(config.place)]
    if config.place.runner == "docker":
        return [*found, _docker(config)], nowhere
    engine, device = _engine(config)
    return [*found, *engine], device


def memory(config: Config, device: Device, largest: int) -> Need:
    """Whether a model fits the device, or this machine's memory.

    Args:
        config: The configuration.
        device: Where the engine computes.
        largest: Bytes of the largest model that is loaded.
    """
    have = device.memory if device.kind == "cuda" else _available()
    where = "the GPU" if device.kind == "cuda" else "this machine"
    sizes = f"{where} has {have / 1e9:.1f} GB of memory"
    if not device.kind or config.evaluation.engine == "server" or have >= _ROOM * largest:
        return Need("memory", sizes)
    return Need(
        "memory",
        missing=f"{sizes}, and a model of {largest / 1e9:.1f} GB needs {_ROOM * largest / 1e9:.1f} at the least: use a"
        " larger one, a smaller model, or a server elsewhere (evaluation.engine: server)",
    )


def _available() -> int:
    """Bytes of memory that programs may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _folders(place: Place) -> Iterator[Need]:
    """Folders that are written."""
    for name, folder in (("place.folder", Path(place.folder)), ("the temporary folder", Path(tempfile.gettempdir()))):
        existing = folder.resolve()
        while not existing.exists():
            existing = existing.parent
        free = f"{existing}: {shutil.disk_usage(existing).free / 1e9:.1f} GB free"
        try:
            with tempfile.TemporaryFile(dir=existing):
                yield Need(name, free)
        except OSError as error:
            yield Need(
                name, missing=f"{name}: nothing can be written in {existing} ({error.strerror}); name another folder"
            )


def _engine(config: Config) -> tuple[list[Need], Device]:
    """The engine's packages, imported in a process of their own, and the device that torch sees there."""
    kind = config.evaluation.engine
    if kind == "server":
        return [], Device("", 0)
    if kind not in _PACKAGES:
        try:
            load_engine(kind)
        except InvalidInputError as error:
            return [Need("engine", missing=str(error))], Device("", 0)
    packages = _PACKAGES.get(kind, "torch")
    code = _PROBE.format(packages=packages)
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return [Need("engine", missing=f"importing {packages} takes more than {_SECONDS:.0f} s here")], Device("", 0)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        install = _INSTALL.get(kind, "install it")
        return [Need("engine", missing=f"{packages} cannot be imported ({reason}); {install}")], Device("", 0)
    where, total = done.stdout.split()[-2:]
    wanted = config.place.device
    if wanted == "cuda" and where != "cuda":
        missing = "place.device is cuda, and torch sees no CUDA device here; set it to auto or cpu, or check the driver"
        return [Need("engine", packages), Need("device", missing=missing)], Device("", 0)
    device = Device("cpu", 0) if wanted == "cpu" else Device(where, int(total))
    if kind == "auto" and device.kind == "cuda":
        evaluation = config.evaluation.model_copy(update={"engine": "vllm"})
        return _engine(config.model_copy(update={"evaluation": evaluation}))
    return [Need("engine", packages), Need("device", device.kind)], device


def _docker(config: Config) -> Need:
    from cycleqd.run.containers.launcher import Containers

    try:
        with Containers(config):
            return Need("docker", "its daemon answers")
    except CycleQDError as error:
        return Need("docker", missing=str(error))


def _task(name: str, task: TaskConfig) -> Iterator[Need]:
    """Programs that a task needs; what is wrong with the task itself is not asked here."""
    what = f"task '{name}'"
    with tempfile.TemporaryDirectory(prefix="cycleqd-doctor-") as scratch:
        try:
            lacking = load_task(task.class_)(task.settings, Workspace(Path(scratch))).preflight()
        except Exception as error:  # a plug-in is somebody else's code
            lacking = [f"{type(error).__name__}: {error}" if not isinstance(error, CycleQDError) else str(error)]
    if not lacking:
        yield Need(what, "all that it needs")
    yield from (Need(what, missing=sentence) for sentence in lacking)
