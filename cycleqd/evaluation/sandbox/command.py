"""The bubblewrap command line: what a process in a box sees, and as which user it runs.

There are three ways into a box; the first that works on this machine is used for all:

- root: bubblewrap makes the name spaces as root, and the command runs as a user id that nothing else on the machine has
  (limits on processes are counted a user, and do not bind root).
- dropped: root without the right to make name spaces (a plain container) becomes that user first, then as below.
- user: an ordinary user gets a user name space, and is user 1000 there.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cycleqd.evaluation.sandbox import seccomp
from cycleqd.evaluation.sandbox.limits import Limits

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
NAME_SPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_SYSTEM = ("lib", "lib32", "lib64", "libx32", "bin", "sbin")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives")
BOX_UID = 1000  # inside a user name space
SLACK = 5  # seconds of processor time by which the kernel's limit lies above the watcher's, which gives the reason
_PYTHON = "/python"  # where an interpreter that lives outside /usr appears
_TOP_UID = 2_000_000_000  # bubblewrap writes larger ones as negative numbers; machines (machine.py) lie above
_counter = itertools.count()


class Entry(StrEnum):
    """How this process can enter a box."""

    ROOT = "root"
    DROPPED = "dropped"
    USER = "user"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a box shows besides the system's programs and its own empty /tmp and /dev/shm.

    `binds`: path in the box → path on the host, read-only. `files`: path in the box → content, read-only. There is no
    /proc: many pods refuse to mount one, and no program here needs it.
    """

    binds: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def unused_uid() -> int:
    """A user id of this machine that no other box has now, from the top of the range that this process may use."""
    start, _, length = own_ids()
    top, span = min(start + length, _TOP_UID), min(length // 2, 1 << 30)
    return top - 1 - (os.getpid() * 256 + next(_counter) % 256) % span


def own_ids() -> tuple[int, int, int]:
    """The last range of user ids that this process has: (first, first outside, length)."""
    start, outside, length = map(int, Path("/proc/self/uid_map").read_text().splitlines()[-1].split())
    return start, outside, length


@functools.cache
def interpreter() -> tuple[str, dict[str, Path]]:
    """This Python as (path in a box, binds that put it there): the base installation, without any site-packages."""
    prefix, program = Path(sys.base_prefix).resolve(), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if prefix.is_relative_to("/usr"):
        return f"{prefix}/bin/{program}", {}
    return f"{_PYTHON}/bin/{program}", {_PYTHON: prefix}


def box_command(
    argv: Sequence[str],
    *,
    entry: Entry,
    uid: int,
    limits: Limits,
    setup: Setup,
    contents: Mapping[str, int] | None = None,
    seccomp: int | None = None,
    info: int | None = None,
    trusted: bool = False,
) -> list[str]:
    """The whole bubblewrap command that runs `argv` in a box.

    Args:
        argv: Path of a program in the box, and its arguments.
        entry: The way into the box.
        uid: User id outside as which the program runs (entries root and dropped).
        limits: Those that the kernel enforces; the watcher's are not this command's.
        setup: What the box shows; its `files` come as `contents`.
        contents: Path in the box → open descriptor with the file's content.
        seccomp: Open descriptor with the filter of system calls; None for no filter.
        info: Open descriptor to which bwrap writes the number of the box's first process.
        trusted: The program is ours and makes further name spaces: it has the rights for that, and no filter or limits.
    """
    command = [*_outer(entry, uid, info), *_root(limits, setup, contents or {})]
    kept = ["SETUID", "SETGID"] if entry is Entry.ROOT else []  # to change its user
    if trusted:
        return [*command, *rights(["SYS_ADMIN", *kept]), "--", *argv]
    if seccomp is not None:
        command += ["--seccomp", str(seccomp)]
    return [*command, *rights(kept), "--", *_inner(entry, limits, uid), *argv]


def accounts(uid: int) -> dict[str, bytes]:
    """The account files of a box, path → content: its user and root, no name of the host's.

    Args:
        uid: The user's id in the box.
    """
    return {
        "/etc/passwd": f"root:x:0:0::/:/bin/sh\nbox:x:{uid}:{uid}::/tmp:/bin/sh\n".encode(),
        "/etc/group": f"root:x:0:\nbox:x:{uid}:\n".encode(),
    }


def become_user(uid: int) -> list[str]:
    """The command before a program's own that makes it an ordinary user for good, where root made the name spaces.

    Args:
        uid: User and group id.
    """
    identity = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return ["/usr/bin/setpriv", *identity, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]


def rights(kept: Sequence[str]) -> list[str]:
    """bwrap's arguments that take all capabilities but some.

    Args:
        kept: Their names, without CAP_.
    """
    return ["--cap-drop", "ALL", *(word for right in kept for word in ("--cap-add", f"CAP_{right}"))]


def environment(values: Mapping[str, str]) -> list[str]:
    """bwrap's arguments that set the whole environment.

    Args:
        values: Name → value.
    """
    return ["--clearenv", *(word for name, value in values.items() for word in ("--setenv", name, value))]


def system() -> list[str]:
    """bwrap's arguments that show this machine's programs, read-only."""
    shown = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            shown += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            shown += ["--ro-bind", str(path), str(path)]
    for shared in _ETC:
        shown += ["--ro-bind-try", shared, shared]
    return shown


def _outer(entry: Entry, uid: int, info: int | None) -> list[str]:
    ends = ["--die-with-parent", "--new-session", *([] if info is None else ["--info-fd", str(info)])]
    options = [*NAME_SPACES, "--hostname", "box", *ends]
    if entry is Entry.ROOT:
        return ["bwrap", *options]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if entry is Entry.DROPPED else []
    return [*become, "bwrap", "--unshare-user", "--uid", str(BOX_UID), "--gid", str(BOX_UID), *options]


def _inner(entry: Entry, limits: Limits, uid: int) -> list[str]:
    """Limits and identity are taken on inside the name spaces, where the count of processes starts from nothing."""
    bounds = [f"--{name}={value}" for name, value in limits.of_each_process(SLACK).items()]
    return ["/usr/bin/prlimit", *bounds, "--", *(become_user(uid) if entry is Entry.ROOT else [])]


def _root(limits: Limits, setup: Setup, contents: Mapping[str, int]) -> list[str]:
    """The file system: read-only system, private devices, two bounded scratch folders, nothing else."""
    command: list[str] = []
    parents = {str(parent) for path in (*_ETC, *setup.binds, *contents) for parent in Path(path).parents}
    for folder in sorted(parents - {"/", "/usr"}):
        command += ["--perms", "0755", "--dir", folder]  # bwrap's default would let only the maker in
    command += system()
    for inside, outside in setup.binds.items():
        command += ["--ro-bind", str(outside), inside]
    for inside, descriptor in contents.items():
        command += ["--perms", "0444", "--ro-bind-data", str(descriptor), inside]
    command += ["--dev", "/dev"]
    for scratch in ("/dev/shm", "/tmp"):
        command += ["--size", str(limits.scratch), "--perms", "1777", "--tmpfs", scratch]
    # Terminals are the machine's, 4096 for all: here there are none.
    command += ["--size", "4096", "--tmpfs", "/dev/pts", "--remount-ro", "/dev/pts"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, *environment({**ENVIRONMENT, **setup.environment})]


def missing_programs() -> list[str]:
    """The programs of this page that are not on this machine, as names."""
    return [name for name in ("bwrap", "prlimit", "setpriv") if shutil.which(name) is None]


@functools.cache
def entry() -> Entry | None:
    """The way into a box that works here, found by trying once a process; None when none does."""
    return next((candidate for candidate in candidates() if not refusal(candidate)), None)


def candidates() -> list[Entry]:
    """The ways in that are open to this user, the best first."""
    has_ids = os.geteuid() == 0 and own_ids()[2] > 1  # root of a user name space of one id is an ordinary user outside
    return [Entry.ROOT, Entry.DROPPED] if has_ids else [Entry.USER]


def refusal(candidate: Entry) -> str:
    """Why a box cannot be made this way, found by making one that does nothing; empty when it works.

    Args:
        candidate: The way in.
    """
    if missing := missing_programs():
        return f"not found: {', '.join(missing)}"
    uid = BOX_UID if candidate is Entry.USER else unused_uid()
    with tempfile.TemporaryFile() as file:  # on disk: this process may be refused files in memory
        file.write(seccomp.program())
        file.seek(0)
        command = box_command(
            ["/usr/bin/true"],
            entry=candidate,
            uid=uid,
            limits=Limits(),
            setup=Setup(),
            seccomp=file.fileno() if seccomp.program() else None,
        )
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, pass_fds=[file.fileno()])
    if done.returncode == 0:
        return ""
    return " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
