"""cycleqd compile: the pipelines as YAML."""

from __future__ import annotations

from pathlib import Path

from cycleqd.cli.output import answer
from cycleqd.cli.source import ConfigSource
from pipelines.definitions import Kind
from pipelines.definitions import write as write_pipeline

_KINDS: tuple[Kind, ...] = ("seeding", "generation", "finalising")


def write(source: ConfigSource, folder: Path, as_json: bool) -> None:
    """Compile all three pipelines of a configuration into a folder.

    Args:
        source: Files and flags that make the configuration.
        folder: Made if need be; YAML files in it are overwritten.
        as_json: Print JSON.
    """
    config = source.load()
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{kind}.yaml" for kind in _KINDS}
    for kind, file in files.items():
        write_pipeline(config, kind, config.place.generations_per_run, file)
    answer(as_json, {kind: str(file) for kind, file in files.items()}, *map(str, files.values()))
