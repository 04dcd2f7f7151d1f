"""The pipelines by name, and their compiled form."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cycleqd import __version__
from cycleqd.search.config import Config

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

Kind = Literal["seeding", "generation", "finalising"]
_COPY = re.compile(r"-\d+$")


def build(config: Config, kind: Kind, count: int) -> BaseComponent:
    """The pipeline of a kind.

    Args:
        config: Tasks, experts and place of the evolution.
        kind: Which pipeline.
        count: Generations in a row, for "generation".
    """
    from pipelines.finalising import finalising
    from pipelines.generation import generation
    from pipelines.seeding import seeding

    if kind == "generation":
        return generation(config, count)
    return seeding(config) if kind == "seeding" else finalising(config)


def write(config: Config, kind: Kind, count: int, path: Path) -> None:
    """Compile a pipeline to YAML.

    Args:
        config: Tasks, experts and place of the evolution.
        kind: Which pipeline.
        count: Generations in a row, for "generation".
        path: The file that is written.
    """
    import yaml
    from kfp.compiler import Compiler

    Compiler().compile(build(config, kind, count), str(path))
    if kind == "generation" and count > 1:
        text = path.read_text()
        comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        pipeline, *platforms = yaml.safe_load_all(text)
        _share_the_generation(pipeline, platforms)
        path.write_text(comments + yaml.safe_dump_all([pipeline, *platforms], width=120))


def version_name(package: Path) -> str:
    """What a compiled pipeline's version is called: our version, the commit where one is known, and 12 digits of its
    own sha256, by which definitions differ that the same code compiled: "0.2.0+622adee12345 1f3c9a2b7d11".

    Args:
        package: The YAML file.
    """
    return f"{_code_version()} {hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"


def _code_version() -> str:
    """As images know it; in a checkout, as git says."""
    told, folder = os.environ.get("CYCLEQD_CODE_VERSION"), Path(__file__).parents[1]
    if told or not (folder / ".git").exists():
        return told or __version__
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--match", ""]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or not this user's folder
        return __version__
    return f"{__version__}+{commit}"


def _share_the_generation(pipeline: dict[str, Any], platforms: list[dict[str, Any]]) -> None:
    """Let every generation of a run use the first one's definition.

    The compiler copies the inner pipeline, with all that it needs, for each use; at 20 generations a definition would
    pass the size that KFP takes. Backends allow tasks to share a component.
    """
    for task in pipeline["root"]["dag"]["tasks"].values():
        task["componentRef"]["name"] = _COPY.sub("", task["componentRef"]["name"])
    components, needed = pipeline["components"], set[str]()
    waiting = [task["componentRef"]["name"] for task in pipeline["root"]["dag"]["tasks"].values()]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            inner = components[name].get("dag", {}).get("tasks", {}).values()
            waiting += [task["componentRef"]["name"] for task in inner]
    labels = {components[name]["executorLabel"] for name in needed if "executorLabel" in components[name]}
    pipeline["components"] = {name: components[name] for name in components if name in needed}
    for holder in [pipeline["deploymentSpec"], *(p["platforms"]["kubernetes"]["deploymentSpec"] for p in platforms)]:
        holder["executors"] = {label: value for label, value in holder["executors"].items() if label in labels}
