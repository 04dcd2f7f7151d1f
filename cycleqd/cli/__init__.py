"""The command line `cycleqd`: declarations only. A command imports what it needs when it runs: help stays quick."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from cycleqd import __version__
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import CycleQDError

INTERRUPTED = 130
_EPILOG = (
    "Exit codes: 0 done · 1 failed · 2 wrong input or usage · 3 stored data altered · 4 conflict with another process ·"
    " 5 a service or program is missing · 6 a model could not be scored · 130 interrupted (143 terminated)."
)

app = typer.Typer(
    name="cycleqd",
    help="Evolve expert language models by merging them (CycleQD).",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

P = ParamSpec("P")
Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="CYCLEQD_CONFIG", help="The evolution's configuration file.")
]
Profile = Annotated[
    Path | None, typer.Option(envvar="CYCLEQD_PROFILE", help="A file of `place` keys laid over the configuration's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
Endpoint = Annotated[str | None, typer.Option(help="URL of the KFP API, in place of place.endpoint.")]
Namespace = Annotated[str | None, typer.Option(help="Where runs execute, in place of place.namespace.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its step: generation-000003.")]
Model = Annotated[str, typer.Argument(help="A model id: base, expert-NAME, g000012-c00, final, naive; or best.")]
DEFAULT = Path("cycleqd.yaml")


def _print_version(chosen: bool) -> None:
    if chosen:
        print(f"cycleqd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(envvar="CYCLEQD_DEBUG", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands, before the command's name."""
    if debug:
        os.environ["CYCLEQD_DEBUG"] = "1"


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Register a command whose failures are one sentence and an exit code, and which an interrupt ends cleanly."""

    @functools.wraps(function)
    def reported(*args: P.args, **kwargs: P.kwargs) -> None:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            function(*args, **kwargs)
        except CycleQDError as error:
            if os.environ.get("CYCLEQD_DEBUG"):
                raise
            from cycleqd.cli.output import plain

            print(f"cycleqd: {plain(str(error))}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("cycleqd: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return app.command()(reported)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


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
    """Keep the embedded S3 and MLflow servers up until Ctrl-C, and say where MLflow's pages are."""
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


@command
def submit(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Start the one run that is due on the cluster, or say which one is in flight."""
    from cycleqd.cli.cluster import submit as start

    start(_on_cluster(config, profile, endpoint, namespace), json)


@command
def drive(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Keep one run in flight on the cluster until the evolution is complete. May be stopped and started again."""
    from cycleqd.cli.cluster import drive as go

    go(_on_cluster(config, profile, endpoint, namespace), json)


@command
def schedule(
    cron: Annotated[str, typer.Option(help="Six fields, seconds first: '0 */30 * * * *' is every half hour.")],
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Have the cluster run the next generations by the clock, one run at a time."""
    from cycleqd.cli.schedule import schedule as apply

    apply(_on_cluster(config, profile, endpoint, namespace), cron, json)


@command
def unschedule(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Remove the schedule; a run in flight goes on."""
    from cycleqd.cli.schedule import unschedule as remove

    remove(_on_cluster(config, profile, endpoint, namespace), json)


@command
def runs(
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    limit: Annotated[int, typer.Option(min=0, help="Show so many; 0 is all.")] = 20,
    json: Json = False,
) -> None:
    """The evolution's runs on the cluster, the newest first."""
    from cycleqd.cli.runs import show

    show(_on_cluster(config, profile, endpoint, namespace), limit, json)


@command
def logs(
    run: RunName,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    task: Annotated[str, typer.Option(help="Only this task (merge, evaluate-child …), pod or child.")] = "",
    drivers: Annotated[bool, typer.Option("--drivers", help="KFP's own driver pods, too.")] = False,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="The last lines of each pod.")] = 200,
    json: Json = False,
) -> None:
    """What the pods of a run wrote."""
    from cycleqd.cli.runs import logs as show

    show(_on_cluster(config, profile, endpoint, namespace), run, task, drivers, lines, json)


@command
def retry(
    run: RunName,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Run what failed in a run, and what follows it, again; wait until it works."""
    from cycleqd.cli.runs import retry as again

    again(_on_cluster(config, profile, endpoint, namespace), run, json)


@command
def cancel(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id or step; default: all in flight.")
    ] = None,
    config: Config = DEFAULT,
    profile: Profile = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """End runs of the evolution. What they finished stays."""
    from cycleqd.cli.runs import cancel as end

    end(_on_cluster(config, profile, endpoint, namespace), run, json)


def _on_cluster(config: Path, profile: Path | None, endpoint: str | None, namespace: str | None) -> ConfigSource:
    return ConfigSource(config, profile, {"runner": "kubeflow", "endpoint": endpoint, "namespace": namespace})


def main() -> None:
    """Entry point of the `cycleqd` program."""
    app()
