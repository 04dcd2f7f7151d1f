"""cycleqd serve: a vLLM server with the evolution's base in memory, which stays between generations."""

from __future__ import annotations

import signal
from typing import NoReturn

from cycleqd.cli.output import say
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import UnavailableError
from cycleqd.run.serving import Listening, serving, wait_for_seeding, wait_until_ready


def serve(source: ConfigSource, listening: Listening) -> None:
    """Serve until a signal comes.

    Args:
        source: The configuration.
        listening: Where, and how else vLLM is started.

    Raises:
        UnavailableError: The server ended by itself.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with session(source) as reached:
        config = wait_for_seeding(reached.store, say)
        with serving(reached.settings, reached.store, config, reached.config.place, listening) as process:
            try:
                wait_until_ready(process, listening)
                say(f"ready: http://{listening.host}:{listening.port} · Ctrl-C ends it")
                raise UnavailableError(f"vLLM ended with code {process.wait()}; its log above has the cause")
            except KeyboardInterrupt:
                say("ended")


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
