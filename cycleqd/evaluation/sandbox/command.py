"""The bubblewrap command line: what a boxed process sees, and as whom it runs.

Three ways in, the first that works on this machine is used for every box:

- root: bubblewrap makes the name spaces as root, and the command runs as a user id that nothing else on the machine has
  (limits on processes are counted a user, and do not bind root).
- dropped: root without the right to make name spaces (a plain container) becomes that user first, then as below.
- user: an ordinary user gets a user name space, and is user 1000 there.
"""

from __future__ import annotations

import functools
import itertools
import math
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
    """What a box shows beside the system's programs and its own empty /tmp and /dev/shm.

    `binds`: path in the box → path on the host, read-only. `files`: path in the box → content, read-only. There is no
    /proc: many pods refuse to mount one, and no program here needs it.
    """

    binds: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def unused_uid() -> int:
    """A user id of this machine that no other box has now, from the top of the range that this process may use."""
    start, _, length = _own_ids()
    top, span = min(start + length, _TOP_UID), min(length // 2, 1 << 30)
    return top - 1 - (os.getpid() * 256 + next(_counter) % 256) % span


def _own_ids() -> tuple[int, int, int]:
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
    limits: Limits,
    setup: Setup,
    contents: Mapping[str, int],
    seccomp: int | None,
    uid: int,
    info: int | None,
) -> list[str]:
    """The whole command: `argv` in a box, as `uid` (root and dropped entries).

    `contents`: path in the box → open file descriptor with its content; `seccomp`: that of the filter;
    `info`: one to which bwrap writes the number of the box's first process.
    """
    command = [*_outer(entry, uid, info), *_root(limits, setup, contents)]
    if seccomp is not None:
        command += ["--seccomp", str(seccomp)]
    rights = ("CAP_SETUID", "CAP_SETGID") if entry is Entry.ROOT else ()
    return [*command, *_rights(rights), "--", *_inner(entry, limits, uid), *argv]


def trusted_command(
    argv: Sequence[str],
    *,
    entry: Entry,
    limits: Limits,
    setup: Setup,
    contents: Mapping[str, int],
    seccomp: int | None,
    uid: int,
    info: int | None,
) -> list[str]:
    """As `box_command`, for a program of ours: it may make further name spaces, and change its user where root can."""
    rights = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID") if entry is Entry.ROOT else ("CAP_SYS_ADMIN",)
    return [*_outer(entry, uid, info), *_root(limits, setup, contents), *_rights(rights), "--", *argv]


def accounts(uid: int) -> dict[str, bytes]:
    """The account files of a box in which the command is `uid`: it and root, no name of the host's."""
    return {
        "/etc/passwd": f"root:x:0:0::/:/bin/sh\nbox:x:{uid}:{uid}::/tmp:/bin/sh\n".encode(),
        "/etc/group": f"root:x:0:\nbox:x:{uid}:\n".encode(),
    }


def _outer(entry: Entry, uid: int, info: int | None) -> list[str]:
    spaces = [
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--hostname",
        "box",
    ]
    ends = ["--die-with-parent", "--new-session", *([] if info is None else ["--info-fd", str(info)])]
    if entry is Entry.ROOT:
        return ["bwrap", *spaces, *ends]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if entry is Entry.DROPPED else []
    return [*become, "bwrap", "--unshare-user", "--uid", str(BOX_UID), "--gid", str(BOX_UID), *spaces, *ends]


def _rights(kept: Sequence[str]) -> list[str]:
    return ["--cap-drop", "ALL", *(word for right in kept for word in ("--cap-add", right))]


def _inner(entry: Entry, limits: Limits, uid: int) -> list[str]:
    """Limits and identity are taken on inside the name spaces, where the count of processes starts from nothing."""
    command = [
        "/usr/bin/prlimit",
        f"--as={limits.address_space}",
        f"--cpu={math.ceil(limits.cpu) + SLACK}",
        "--core=0",
        "--memlock=0",
    ]
    command += [f"--nproc={limits.processes}", f"--fsize={limits.file_size}", f"--nofile={limits.open_files}", "--"]
    if entry is Entry.ROOT:
        command += ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
        command += ["--bounding-set=-all", "--no-new-privs", "--"]
    return command


def _root(limits: Limits, setup: Setup, contents: Mapping[str, int]) -> list[str]:
    """The file system: read-only system, private devices, two bounded scratch folders, nothing else."""
    command = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    parents = {str(parent) for path in (*_ETC, *setup.binds, *contents) for parent in Path(path).parents}
    for folder in sorted(parents - {"/", "/usr"}):
        command += ["--perms", "0755", "--dir", folder]  # bwrap's own choice shuts others than the maker out
    for shared in _ETC:
        command += ["--ro-bind-try", shared, shared]
    for inside, outside in setup.binds.items():
        command += ["--ro-bind", str(outside), inside]
    for inside, descriptor in contents.items():
        command += ["--perms", "0444", "--ro-bind-data", str(descriptor), inside]
    command += ["--dev", "/dev"]
    for scratch in ("/dev/shm", "/tmp"):
        command += ["--size", str(limits.scratch), "--perms", "1777", "--tmpfs", scratch]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    for name, value in {**ENVIRONMENT, **setup.environment}.items():
        command += ["--setenv", name, value]
    return command


def missing_programs() -> list[str]:
    """The programs of this page that are not on this machine, as names."""
    return [name for name in ("bwrap", "prlimit", "setpriv") if shutil.which(name) is None]


@functools.cache
def entry() -> Entry | None:
    """The way into a box that works here, found by trying once a process; None when none does."""
    return next((candidate for candidate in candidates() if not refusal(candidate)), None)


def candidates() -> list[Entry]:
    """The ways in that are open to this user, the best first."""
    has_ids = os.geteuid() == 0 and _own_ids()[2] > 1  # root of a user name space of one id is an ordinary user outside
    return [Entry.ROOT, Entry.DROPPED] if has_ids else [Entry.USER]


def refusal(candidate: Entry) -> str:
    """The error of a box that does nothing, with the filter that boxes have; empty when it works."""
    if missing := missing_programs():
        return f"not found: {', '.join(missing)}"
    nothing, uid = ["/usr/bin/true"], BOX_UID if candidate is Entry.USER else unused_uid()
    with tempfile.TemporaryFile() as file:
        file.write(seccomp.program() if seccomp.supported() else b"")
        file.seek(0)
        command = box_command(
            nothing,
            entry=candidate,
            limits=Limits(),
            setup=Setup(),
            contents={},
            seccomp=file.fileno() if seccomp.supported() else None,
            uid=uid,
            info=None,
        )
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, pass_fds=[file.fileno()])
    if done.returncode == 0:
        return ""
    return " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
