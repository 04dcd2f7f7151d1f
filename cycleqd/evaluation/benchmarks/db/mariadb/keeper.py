"""Keeps a private server from outliving its owner; run as `python -I -S keeper.py FOLDER PROGRAM ARGUMENT...`

The owner holds the other end of this process's standard input. When that closes, because the owner is done or was
killed in any way, the server is killed and FOLDER removed. A pipe is used and not the kernel's parent-death signal,
because that signal is sent when the *thread* that started the child ends.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import sys

POLL_SECONDS = 0.5


def keep(folder: str, command: list[str]) -> int:
    """Run a server until it ends or standard input closes, then remove its folder; returns the server's exit status.

    Args:
        folder: Everything that the server writes.
        command: The server's program and its arguments.
    """
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
                break
    finally:
        server.kill()
        status = server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], sys.argv[2:]))
