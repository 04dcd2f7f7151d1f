"""The command line `cycleqd`: declarations only. A command imports what it needs when it runs: help stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cycleqd.cli.app import DEFAULT, Config, Json, Model, Profile, app, command
from cycleqd.cli.source import ConfigSource

__all__ = ["app", "main"]


@command
def init(
    base: Annotated[str, typer.Option(help="The base model: a Hugging Face folder or an s3:// prefix.")],
    expert: Annotated[
        list[str],
        typer.Option(metavar="NAME=PATH:TASK", help="An expert and the task it was fine-tuned for; once for each."),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DATA[,CLASS]",
            help="A task and its data; once for each. code, db and os are built in; others need file.py:Class.",
        ),
    ],
    config: Config = DEFAULT,
    name: Annotated[str | None, typer.Option(help="The evolution's name; default: the file's, without .yaml.")] = None,
) -> None:
    """Write a commented starting configuration for your own models and tasks, to a new file."""
    from cycleqd.cli.init import write

    write(config, name, base, expert, task)


@command
def validate(config: Config = DEFAULT, profile: Profile = None, json: Json = False) -> None:
    """Check a configuration, its models, data and services; estimate the cost. Every problem at once."""
    from cycleqd.cli.validate import show

    show(ConfigSource(config, profile), json)


@command
def run(
    config: Config = DEFAULT,
    profile: Profile = None,
    runner: Annotated[str | None, typer.Option(help="local or docker, in place of place.runner.")] = None,
    json: Json = False,
) -> None:
    """Run the evolution to its end, from wherever it is. May be stopped and started again at any time."""
    from cycleqd.cli.run import run as start

    start(ConfigSource(config, profile, {"runner": runner}), json)


@command
def status(config: Config = DEFAULT, profile: Profile = None, json: Json = False) -> None:
    """How far the evolution is, its best models, and what is in flight."""
    from cycleqd.cli.status import show

    show(ConfigSource(config, profile), json)


@command
def archive(
    config: Config = DEFAULT,
    profile: Profile = None,
    generation: Annotated[int | None, typer.Option(help="After so many generations; default: now.")] = None,
    json: Json = False,
) -> None:
    """The archives' grids in the terminal."""
    from cycleqd.cli.archive import show

    show(ConfigSource(config, profile), generation, json)


@command
def models(
    config: Config = DEFAULT,
    profile: Profile = None,
    sort: Annotated[str, typer.Option(help="A task, or: average, generation, id.")] = "average",
    ascending: Annotated[bool, typer.Option("--ascending", help="Lowest first.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show so many; 0 is all.")] = 20,
    json: Json = False,
) -> None:
    """A table of all models that were scored."""
    from cycleqd.cli.models import show

    show(ConfigSource(config, profile), sort, ascending, limit, json)


@command
def lineage(model: Model, config: Config = DEFAULT, profile: Profile = None, json: Json = False) -> None:
    """The family tree of a model, back to the experts."""
    from cycleqd.cli.lineage import show

    show(ConfigSource(config, profile), model, json)


@command
def samples(
    model: Model,
    task: Annotated[str, typer.Argument(help="A task of the configuration.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    split: Annotated[str, typer.Option(help="search or test.")] = "search",
    outcome: Annotated[str, typer.Option(help="Only: passed, wrong, error, time-out, format.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Show so many; 0 is all.")] = 10,
    json: Json = False,
) -> None:
    """A model's prompts, replies and verdicts on one task."""
    from cycleqd.cli.samples import show

    show(ConfigSource(config, profile), model, task, split, outcome, limit, json)


@command
def replay(
    model: Model,
    config: Config = DEFAULT,
    profile: Profile = None,
    folder: Annotated[Path | None, typer.Option(help="Keep the rebuilt model in this new folder.")] = None,
    json: Json = False,
) -> None:
    """Rebuild a model, and its collected ancestors, from its lineage; compare the digest with the recorded one."""
    from cycleqd.cli.replay import replay as rebuild

    rebuild(ConfigSource(config, profile), model, folder, json)


@command
def rescore(config: Config = DEFAULT, profile: Profile = None, json: Json = False) -> None:
    """Score base, experts and living children anew where a task's method has another version now."""
    from cycleqd.cli.rescore import run as start

    start(ConfigSource(config, profile), json)


@command
def audit(
    model: Annotated[str, typer.Argument(help="A model id, best, or the id of an MLflow run or a KFP run.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Who made a model in what image and from what, back to the experts; every digest verified against S3."""
    from cycleqd.cli.audit import show

    show(ConfigSource(config, profile), model, json)


@command
def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Write a model as a Hugging Face folder."""
    from cycleqd.cli.export import export as write

    write(ConfigSource(config, profile), model, folder, json)


@command
def compare(
    evolutions: Annotated[list[str], typer.Argument(help="Names of evolutions in the configuration's bucket.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Evolutions side by side."""
    from cycleqd.cli.compare import show

    show(ConfigSource(config, profile), evolutions, json)


@command
def report(
    config: Config = DEFAULT,
    profile: Profile = None,
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path("report"),
    json: Json = False,
) -> None:
    """Write the report: one HTML file and its pictures."""
    from cycleqd.cli.report import write

    write(ConfigSource(config, profile), folder, json)


@command
def ui(config: Config = DEFAULT, profile: Profile = None) -> None:
    """Keep the embedded S3 and MLflow servers up until Ctrl-C, and print the address of MLflow's pages."""
    from cycleqd.cli.ui import serve

    serve(ConfigSource(config, profile))


@command
def compile(
    folder: Annotated[Path, typer.Argument(help="Where to write the YAML files.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Write the pipelines as KFP YAML, to be uploaded to a cluster."""
    from cycleqd.cli.compile import write

    write(ConfigSource(config, profile, {"runner": "kubeflow"}), folder, json)


def main() -> None:
    """Entry point of the `cycleqd` program."""
    app()


from cycleqd.cli import on_cluster  # noqa: E402, F401  registers its commands, after these in the help
