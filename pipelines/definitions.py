"""The pipelines by name, and their compiled form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.config import Config
from pipelines.steps import Kind

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent


def build(config: Config, kind: Kind, count: int) -> BaseComponent:
    """The pipeline of a kind; `count` generations in a row for "generation"."""
    from pipelines.finalising import finalising
    from pipelines.generation import generation
    from pipelines.seeding import seeding

    if kind == "generation":
        return generation(config, count)
    return seeding(config) if kind == "seeding" else finalising(config)


def write(config: Config, kind: Kind, count: int, path: Path) -> None:
    """Compile a pipeline to YAML."""
    from kfp.compiler import Compiler

    Compiler().compile(build(config, kind, count), str(path))
