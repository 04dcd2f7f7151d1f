"""Runs inside a box that `warm.py` made: a Python that forks once a job, each fork in name spaces of its own.

argv: the control socket's descriptor, the file with the filter of system calls, the script. The script is imported
once, its `main()` called in every fork. A job is one message on the control socket: JSON {"uid", "scratch", "files",
"limits": {name: value}} with its stdin, stdout and stderr. The answer is the exit status, when all of it is gone.

This process keeps the right to make name spaces and executes nothing of a job; the fork gives every right up before it
reads its first byte. Between jobs nothing survives: the end of a fork's first process ends its pid name space, and its
scratch folders lie in its own mount name space.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from cycleqd.evaluation.sandbox import kernel

NOT_ENTERED = 255  # exit status of a job that was never begun


def main() -> None:
    """Load the script, say "ready", and fork once a job until the other end of the control socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    script = _load(sys.argv[3])
    with open(sys.argv[2], "rb") as file:  # noqa: PTH123 (keeps pathlib out of every fork)
        instructions = file.read()
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not message:
            return
        child = os.fork()
        if child == 0:
            _separate(json.loads(message), descriptors, instructions, script.main)
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        control.send(str(os.waitstatus_to_exitcode(status)).encode())


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("job", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _separate(job: dict[str, Any], descriptors: list[int], instructions: bytes, run: Callable[[], None]) -> None:
    """Make the name spaces, put the job below, wait for it: never returns."""
    try:
        kernel.unshare(kernel.NEW_MOUNT | kernel.NEW_IPC | kernel.NEW_PID)
        kernel.mount("none", "/", "", kernel.MS_RECURSIVE | kernel.MS_PRIVATE)
        for folder in ("/tmp", "/dev/shm"):
            options = f"mode=1777,size={job['scratch']},nr_inodes={job['files']}"
            kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        reader, writer = os.pipe()
        inner = os.fork()
        if inner == 0:
            _begin(job, descriptors, writer, instructions, run)
        for descriptor in (*descriptors, writer):
            os.close(descriptor)
        entered = os.read(reader, 1)
        _, status = os.waitpid(inner, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(min(code if code >= 0 else 128 - code, NOT_ENTERED - 1) if entered else NOT_ENTERED)
    except BaseException as problem:
        os.write(2, f"{type(problem).__name__}: {problem}\n".encode()[:1000])
        os._exit(NOT_ENTERED)


def _begin(
    job: dict[str, Any], descriptors: list[int], entered: int, instructions: bytes, run: Callable[[], None]
) -> None:
    """The job's own process: never returns."""
    code = 1
    try:
        with os.fdopen(entered, "wb", buffering=0) as ready:
            _enter(job, descriptors, instructions, ready.fileno())
            ready.write(b"+")
        run()
        code = 0
    except BaseException as problem:
        os.write(2, f"{type(problem).__name__}: {problem}\n".encode()[:1000])
    finally:
        os._exit(code)


def _enter(job: dict[str, Any], descriptors: list[int], instructions: bytes, kept: int) -> None:
    """Take the job's streams, and give up everything else."""
    for standard in (0, 1, 2):
        os.dup2(descriptors[standard], standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 12)
    os.chdir("/tmp")
    kernel.set_limits(job["limits"])
    if job["uid"] is not None:
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    if instructions:
        kernel.filter_calls(instructions)


if __name__ == "__main__":
    main()
