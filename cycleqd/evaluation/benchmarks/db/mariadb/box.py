"""The box that the private MariaDB server itself runs in: its parser reads hostile statements.

No network, name spaces of its own, a read-only system, no environment, an unprivileged user, its data folder the only
place it can write to, and a temporary folder of bounded size. It shares the way in with the other boxes
(`sandbox/command.py`), but neither their limits, which end a process, nor their view, in which nothing lasts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cycleqd.evaluation.sandbox import NAME_SPACES, Entry, become_user, entry, preflight, unused_uid

INSIDE = "/data"
TEMPORARY = "/spill"
TEMPORARY_BYTES = 512 << 20
"""For sorts and temporary tables that do not fit their memory; of all sessions together."""
SERVER_BYTES = 256 << 20
"""Of the server's own: buffers, logs and threads."""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("mariadbd", "mariadb-install-db")
SYSTEM = ("/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")


def missing() -> list[str]:
    """What this machine lacks for a private server, one sentence each with the way to get it; empty when it can run."""
    lacks = [
        f"The DB task needs the program {program}, which is not on this machine: install mariadb-server 10.11 or newer "
        "(Debian and Ubuntu: apt-get install mariadb-server)."
        for program in PROGRAMS
        if shutil.which(program, path=PATH) is None
    ]
    if importlib.util.find_spec("pymysql") is None:
        lacks.append("The DB task needs the Python package PyMySQL, which is not installed: pip install 'cycleqd[db]'.")
    if entry() is None:
        lacks += [f"The DB task runs MariaDB in a box: {problem}" for problem in preflight()]
    if not lacks and (error := _refusal()):
        lacks.append(f"The DB task runs MariaDB in a box, which cannot be made here: {error}")
    return lacks


def _refusal() -> str:
    """The error of a server that only prints its version, in its box; empty when it works."""
    with tempfile.TemporaryDirectory(prefix="mariadb-") as folder:
        command = [*box(Path(folder)), "mariadbd", "--version"]
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    error = " ".join(done.stderr.decode(errors="replace")[-300:].split())
    return "" if done.returncode == 0 else error or f"exit status {done.returncode}"


def box(folder: Path) -> list[str]:
    """The command line before a program's own: a box that may write to one folder, seen as /data. Call `missing` first.

    Args:
        folder: New and empty but for folders; it is made over to the box's user.
    """
    view = ["--ro-bind", "/usr", "/usr", "--dev", "/dev", "--tmpfs", "/tmp"]
    for shared in SYSTEM:
        view += ["--ro-bind-try", shared, shared]
    view += ["--size", str(TEMPORARY_BYTES), "--perms", "1777", "--tmpfs", TEMPORARY]
    view += ["--bind", str(folder), INSIDE, "--chdir", "/", "--clearenv", "--setenv", "PATH", PATH]
    ends = ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    start = ["bwrap", *NAME_SPACES, "--hostname", "localhost", *view, *ends]
    if entry() is not Entry.ROOT:
        return [*start, "--unshare-user", "--uid", "1000", "--gid", "1000", "--"]
    uid = unused_uid()
    for path in (folder, *folder.iterdir()):
        os.chown(path, uid, uid)
    capabilities = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    return [*start, *capabilities, "--", *become_user(uid)]
