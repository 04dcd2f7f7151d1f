"""The commands, those of a cluster apart: declarations only. A command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cycleqd.cli.app import command
from cycleqd.cli.options import DEFAULT, Anywhere, Base, ConfigFile, Experts, Json, Limit, Model, Source, Tasks


@command
def init(
    base: Base,
    expert: Experts,
    task: Tasks,
    config: ConfigFile = DEFAULT,
    name: Annotated[str | None, typer.Option(help="The evolution's name; default: the file's, without .yaml.")] = None,
) -> None:
    """Write a commented starting configuration for your own models and tasks, to a new file."""
    from cycleqd.cli.init import write

    write(config, name, base, expert, task)


@command
def validate(source: Anywhere, json: Json = False) -> None:
    """Check a configuration, its models, data and services; estimate the cost. Every problem at once."""
    from cycleqd.cli.validate import show

    show(source, json)


@command
def doctor(source: Source, json: Json = False) -> None:
    """What this machine lacks for the configuration: engine, device, programs, folders; and what to install."""
    from cycleqd.cli.doctor import show

    show(source, json)


@command
def run(
    source: Source,
    runner: Annotated[str | None, typer.Option(help="local or docker, in place of place.runner.")] = None,
    json: Json = False,
) -> None:
    """Run the evolution to its end, from wherever it is. May be stopped and started again at any time."""
    from cycleqd.cli.run import run as start

    start(source.changed(runner=runner), json)


@command
def status(source: Source, json: Json = False) -> None:
    """How far the evolution is, its best models, and what is in flight."""
    from cycleqd.cli.status import show

    show(source, json)


@command
def archive(
    source: Source,
    generation: Annotated[int | None, typer.Option(help="After so many generations; default: now.")] = None,
    json: Json = False,
) -> None:
    """The archives' grids in the terminal."""
    from cycleqd.cli.archive import show

    show(source, generation, json)


@command
def models(
    source: Source,
    sort: Annotated[str, typer.Option(help="A task, or: average, generation, id.")] = "average",
    ascending: Annotated[bool, typer.Option("--ascending", help="Lowest first.")] = False,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """A table of all models that were scored."""
    from cycleqd.cli.models import show

    show(source, sort, ascending, limit, json)


@command
def lineage(source: Source, model: Model, json: Json = False) -> None:
    """The family tree of a model, back to the experts."""
    from cycleqd.cli.lineage import show

    show(source, model, json)


@command
def samples(
    source: Source,
    model: Model,
    task: Annotated[str, typer.Argument(help="A task of the configuration.")],
    split: Annotated[str, typer.Option(help="search or test.")] = "search",
    outcome: Annotated[str, typer.Option(help="Only: passed, wrong, error, time-out, format, fault.")] = "",
    limit: Limit = 10,
    json: Json = False,
) -> None:
    """A model's prompts, replies and verdicts on one task."""
    from cycleqd.cli.samples import show

    show(source, model, task, split, outcome, limit, json)


@command
def replay(
    source: Source,
    model: Model,
    folder: Annotated[Path | None, typer.Option(help="Keep the rebuilt model in this new folder.")] = None,
    json: Json = False,
) -> None:
    """Rebuild a model, and its collected ancestors, from its lineage; compare the digest with the recorded one."""
    from cycleqd.cli.replay import replay as rebuild

    rebuild(source, model, folder, json)


@command
def rescore(source: Source, json: Json = False) -> None:
    """Score base, experts and living children again where a task's method has another version now."""
    from cycleqd.cli.rescore import run as start

    start(source, json)


@command
def repair(source: Source, json: Json = False) -> None:
    """Log to MLflow whatever is recorded in S3, and end the runs there that nothing works on."""
    from cycleqd.cli.repair import run as start

    start(source, json)


@command
def list_(source: Source, json: Json = False) -> None:
    """The evolutions of the configuration's bucket: how far they are, and their size."""
    from cycleqd.cli.list import show

    show(source, json)


@command
def delete(
    source: Source,
    evolution: Annotated[str, typer.Argument(help="Its name in the configuration's bucket.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete an evolution from S3, MLflow and Kubeflow; says what that frees, and asks once."""
    from cycleqd.cli.delete import run as start

    start(source, evolution, yes, json)


@command
def extend(source: Source, json: Json = False) -> None:
    """Take up more generations, later stop rules and new report-only tasks of the configuration after seeding."""
    from cycleqd.cli.extend import run as start

    start(source, json)


@command
def audit(
    source: Source,
    model: Annotated[str, typer.Argument(help="A model id, best, or the id of an MLflow run or a KFP run.")],
    json: Json = False,
) -> None:
    """Who made a model in what image and from what, back to the experts; every digest verified against S3."""
    from cycleqd.cli.audit import show

    show(source, model, json)


@command
def export(
    source: Source,
    model: Model,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    merged: Annotated[
        bool, typer.Option(help="In the span: merge into the base instead of writing an adapter.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="In the span: cut the adapter to this rank.")] = None,
    json: Json = False,
) -> None:
    """Write a model as a Hugging Face folder, in the span as a PEFT adapter."""
    from cycleqd.cli.export import export as write

    write(source, model, folder, merged, rank, json)


@command
def compare(
    source: Source,
    evolutions: Annotated[list[str], typer.Argument(help="Names of evolutions in the configuration's bucket.")],
    json: Json = False,
) -> None:
    """Evolutions side by side."""
    from cycleqd.cli.compare import show

    show(source, evolutions, json)


@command
def report(
    source: Source,
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path("report"),
    json: Json = False,
) -> None:
    """Write the report: one HTML file and its pictures."""
    from cycleqd.cli.report import write

    write(source, folder, json)


@command
def ui(source: Source) -> None:
    """Keep the embedded S3 and MLflow servers up until Ctrl-C, and print the address of MLflow's pages."""
    from cycleqd.cli.ui import serve

    serve(source)


@command
def serve(
    source: Source,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="More of `vllm serve`'s own, after --.")
    ] = None,
) -> None:
    """Keep the base in memory for evaluation.engine: server, on this machine, until Ctrl-C."""
    from cycleqd.cli.serve import serve as start
    from cycleqd.run.serving import Listening

    start(source, Listening(host, port, more or ()))


@command
def compile(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Where to write the YAML files.")],
    json: Json = False,
) -> None:
    """Write the pipelines as KFP YAML, to be uploaded to a cluster."""
    from cycleqd.cli.compile import write

    write(source.changed(runner="kubeflow"), folder, json)
