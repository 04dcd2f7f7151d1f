"""Become what a pod's task is, then run a command: `python -m tests.evaluation.sandbox.as_pod ARGUMENT...`, as root.

The arguments are FOLDER CHANGES UID COMMAND..., of which CHANGES is a JSON object:
    newuidmap   "file capabilities" (as in the image) or "set-user-id" (as Debian installs it); it and /etc/subuid
                lend RANGE to the user
    restricted  all capabilities dropped, no privilege escalation: Kubeflow Pipelines' security context for tasks
    covered     /proc is partly covered, as container engines do it, so that the kernel refuses a fresh one
    show        files and folders to show: path below PLACE, where they are not yet → path

FOLDER is shown at PLACE, so that who may not enter the folders above it gets there. All of it is done in a mount name
space of this process, and so is gone with it, but for the empty files and folders in FOLDER that others are shown on.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

from cycleqd.evaluation.sandbox import kernel

RANGE = (100_000, 65_536)
PLACE = Path("/mnt")
MS_READ_ONLY, MS_BIND, MS_REMOUNT = 1, 4096, 32
CAPABILITIES = {"newuidmap": 7, "newgidmap": 6}  # setuid, setgid


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target`, which exists."""
    kernel.mount(str(source), str(target), "", MS_BIND)


def lend(private: Path, uid: int, kind: str) -> None:
    """Lend RANGE to `uid`, with newuidmap and newgidmap of this kind."""
    shutil.copytree("/etc", private / "etc", symlinks=True)
    for name in ("subuid", "subgid"):
        (private / "etc" / name).write_text(f"{uid}:{RANGE[0]}:{RANGE[1]}\n")
    bind(private / "etc", Path("/etc"))
    for name, capability in CAPABILITIES.items():
        there = Path(shutil.which(name) or "")
        own = Path(shutil.copy(there, private / name))
        own.chmod(0o4755 if kind == "set-user-id" else 0o755)
        if kind == "file capabilities":
            effective = 0x02000001  # struct vfs_cap_data, revision 2
            os.setxattr(own, "security.capability", struct.pack("<5I", effective, 1 << capability, 0, 0, 0))
        bind(own, there)


def cover() -> None:
    """Show part of every /proc again, read-only: while one is whole, the kernel lets anybody mount a fresh one."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for part in [Path(point, "sys") for _, point, kind, *_ in mounts if kind == "proc"]:
        bind(part, part)
        kernel.mount("none", str(part), "", MS_BIND | MS_REMOUNT | MS_READ_ONLY)


def main(folder: Path, changes: dict[str, object], uid: int, command: list[str]) -> None:
    """Make the changes and become the command; returns only by an exception."""
    kernel.unshare(kernel.NEW_MOUNT)
    kernel.mount("none", "/", "", kernel.MS_RECURSIVE | kernel.MS_PRIVATE)
    bind(folder, PLACE)
    shown = changes["show"]
    assert isinstance(shown, dict)
    for name, path in shown.items():
        target = PLACE / name
        target.mkdir(exist_ok=True) if Path(path).is_dir() else target.touch()
        bind(Path(path), target)
    (PLACE / "private").mkdir(exist_ok=True)
    kernel.mount("private", str(PLACE / "private"), "tmpfs", 0, "mode=0755")
    lend(PLACE / "private", uid, str(changes["newuidmap"]))
    if changes["covered"]:
        cover()
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    os.chdir("/")
    os.execvp("setpriv", [*become, *(rights if changes["restricted"] else []), *command])


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
