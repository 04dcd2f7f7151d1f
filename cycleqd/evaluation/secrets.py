"""Keeping the stage's credentials out of reach while hostile output runs: no process of an evaluation carries them.

Boxes see no process of the host. This is the second wall: a process that broke out would read its owner's environment
first. Starting this process again without credentials would do the same, but would also end Kubeflow's executor, or the
warm process of a local run; so they are wiped from its memory. With them goes what leads to credentials: the name of a
file with a token, an address that hands out keys. (The file itself stays, for keys must be renewed; no box shows it.)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cycleqd.storage.settings import CREDENTIALS

NAMES = CREDENTIALS | {
    *("AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
}
"""Credentials, and what leads to an identity that has them."""
_kept: dict[str, str] = {}
_ENV_START = 50 - 3  # field of /proc/PID/stat, counted from the one after the program's name


@contextmanager
def withheld() -> Iterator[None]:
    """The credentials are in no environment: not in os.environ, which children inherit, and not in /proc/self/environ.

    Clients that were made before keep working with what they read then. On leaving, os.environ has them again, which
    /proc does not show.
    """
    _kept.update({name: os.environ.pop(name) for name in NAMES & os.environ.keys()})
    _wipe()
    try:
        yield
    finally:
        os.environ.update(_kept)
        _kept.clear()


def credential(name: str) -> str | None:
    """A credential, also while it is withheld; None where there is none.

    Args:
        name: One of NAMES.
    """
    return _kept.get(name) or os.environ.get(name)


def _wipe() -> None:
    """Overwrite the credentials in the block of memory that the kernel shows as this process's first environment."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    position = int(stat[_ENV_START])
    for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
        if entry.partition(b"=")[0].decode(errors="replace") in NAMES:
            ctypes.memset(position, 0, len(entry))
        position += len(entry) + 1
