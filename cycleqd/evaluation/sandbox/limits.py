"""What a box may use, and how a process in a box ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20

Reason = Literal["", "wall", "cpu", "memory", "processes", "files", "output", "closed"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one box. Each is enforced by the kernel, by the watcher (`watch.py`), or by both.

    A box uses at most `memory` of RAM for its processes and `scratch` twice for the files in /tmp and /dev/shm.
    """

    wall: float = 10.0
    """Seconds from start to end by the clock, which stands still while the box waits for a processor: watcher."""
    cpu: float = 10.0
    """Seconds of processor time, all processes together: watcher; each of them, 5 seconds later: kernel."""
    memory: int = 1024 * MIB
    """Bytes of resident memory of all processes, and of what their sockets can hold: watcher, 40 times a second."""
    address_space: int = 4096 * MIB
    """Bytes of address space of one process: kernel."""
    processes: int = 32
    """Processes and threads: kernel, and processes again by the watcher."""
    file_size: int = 64 * MIB
    """Bytes of one file: kernel."""
    scratch: int = 64 * MIB
    """Bytes of all files in /tmp, and of all in /dev/shm: kernel (size of the tmpfs)."""
    files: int = 32768
    """Files and folders in /tmp, and in /dev/shm: kernel (inodes of the tmpfs), in a fresh box the watcher."""
    open_files: int = 128
    """File descriptors of one process: kernel."""
    output: int = 1 * MIB
    """Bytes kept of stdout, and of stderr; one more and the box is killed: who reads them (`descriptors.collect`)."""

    def of_each_process(self, slack: int = 0) -> dict[str, int]:
        """The limits that the kernel enforces on each process, by the names that prlimit has for them.

        Args:
            slack: Seconds of processor time by which the kernel's limit lies above `cpu`, so that the watcher, which
                names the limit, comes first.
        """
        return {
            "as": self.address_space,
            "core": 0,
            "cpu": math.ceil(self.cpu) + slack,
            "fsize": self.file_size,
            "memlock": 0,
            "nofile": self.open_files,
            "nproc": self.processes,
        }


@dataclass(frozen=True)
class Finished:
    """How a box ended.

    `returncode` is the process's own exit status, 128 + N or -N when signal N ended it. `reason` names the limit for
    which the box was killed; it is empty when the process ended by itself.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    reason: Reason = ""

    @property
    def timed_out(self) -> bool:
        """Whether the box was killed for its seconds, by the clock or of processor time."""
        return self.reason in ("wall", "cpu")

    @property
    def ok(self) -> bool:
        """Whether the process exited with 0 and no limit was broken."""
        return self.returncode == 0 and not self.reason
