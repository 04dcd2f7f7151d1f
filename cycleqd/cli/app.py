"""The program `cycleqd`: its options, and how a command is registered and fails."""

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
