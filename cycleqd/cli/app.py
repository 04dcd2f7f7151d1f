"""The program `cycleqd`: how a command is registered and fails."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

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


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command whose failures are one sentence and an exit code, and which an interrupt ends cleanly.

    A parameter `Annotated[…, factory]` is made by calling the factory, whose parameters become options of the command.

    Args:
        function: The command: its name, docstring and parameters are those of the command line. A "_" after a name that
            Python uses is left out.
    """
    shown: list[inspect.Parameter] = []
    factories: dict[str, tuple[Callable[..., object], list[str]]] = {}
    for parameter in _parameters(function):
        (factory,) = getattr(parameter.annotation, "__metadata__", (None,))
        if inspect.isfunction(factory):
            options = _parameters(factory)
            factories[parameter.name] = factory, [option.name for option in options]
            shown += options
        else:
            shown.append(parameter)

    @functools.wraps(function)
    def reported(**given: Any) -> None:
        signal.signal(signal.SIGTERM, _terminated)
        for name, (factory, needed) in factories.items():
            given[name] = factory(**{option: given.pop(option) for option in needed})
        try:
            try:
                function(**given)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print("cycleqd: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except (CycleQDError, OSError, MemoryError) as error:
            if os.environ.get("CYCLEQD_DEBUG"):
                raise
            _fail(error)

    reported.__dict__["__signature__"] = inspect.Signature(shown)
    reported.__annotations__ = {one.name: one.annotation for one in shown}
    return app.command(name=function.__name__.rstrip("_"))(reported)


def _fail(error: CycleQDError | OSError | MemoryError) -> NoReturn:
    """Say in a sentence what went wrong, and exit with its code."""
    from cycleqd.cli.output import plain
    from cycleqd.outside import told

    known = error if isinstance(error, CycleQDError) else told(error)
    print(f"cycleqd: {plain(str(known))}", file=sys.stderr)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of the output has no room either
    sys.exit(known.exit_code)


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """A function's parameters with their annotations as objects, to be passed by name."""
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in found]


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
