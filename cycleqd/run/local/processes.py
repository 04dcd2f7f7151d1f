"""What embedded services need of the machine: their programs, free ports, answers over HTTP, and an end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cycleqd.errors import UnavailableError


def program(name: str) -> str:
    """The path of a program that comes with our packages, whether or not their folder is on the PATH.

    Args:
        name: As it is called.

    Raises:
        UnavailableError: It is not installed.
    """
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise UnavailableError(f"the program '{name}' is missing; install it with: pip install 'cycleqd[local]'")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on.

    Args:
        count: How many; they differ.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def free(port: int) -> bool:
    """Whether nothing listens on a port of this machine.

    Args:
        port: Its number.
    """
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Whether a server answers with success.

    Args:
        url: What is asked for.
    """
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def session_of(pid: int) -> int:
    """The session that a process belongs to, 0 when it is dead.

    Args:
        pid: The process.
    """
    try:
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state == "Z" else int(session)


def end_session(group: int, seconds: float) -> None:
    """End a session's processes: TERM, and KILL for what is left after some seconds.

    Args:
        group: The id of the process that leads the session.
        seconds: How long each of the two signals is waited for.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):  # it is our child only if this command started it
                os.waitpid(group, os.WNOHANG)
            if not session_of(group):
                return
            time.sleep(0.02)
