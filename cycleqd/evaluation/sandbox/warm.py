"""Warm boxes: a Python that already runs forks for every job, so that a job costs milliseconds and not a start.

Every job still has its own pid, mount and ipc name space, scratch folders, user id (as root), limits and filter of
system calls; see `zygote.py`, which runs in the box. A box that had to be killed is replaced.
"""

from __future__ import annotations

import json
import os
import queue
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox import command, seccomp
from cycleqd.evaluation.sandbox.box import Supervised, start
from cycleqd.evaluation.sandbox.descriptors import collect, memory_file
from cycleqd.evaluation.sandbox.limits import Finished, Limits
from cycleqd.evaluation.sandbox.watch import WATCHER
from cycleqd.evaluation.sandbox.zygote import NOT_ENTERED

_ZYGOTE = "/sandbox/zygote.py"
_KERNEL = "/sandbox/cycleqd/evaluation/sandbox/kernel.py"  # where the zygote's folder makes it importable
_FILTER = "/sandbox/filter"
_FOREVER = Limits(wall=float("inf"), cpu=float("inf"), memory=1 << 50, processes=64)


class WarmPython:
    """One box that runs the `main()` of a script again and again, each time in a fork of its own. Not thread-safe.

    `script` is a path in the box, as `setup` shows it.
    """

    def __init__(self, script: str, setup: command.Setup) -> None:
        self._script = script
        own = {_ZYGOTE: Path(__file__).with_name("zygote.py"), _KERNEL: Path(__file__).with_name("kernel.py")}
        self._setup = replace(
            setup,
            binds={**setup.binds, **command.interpreter()[1], **own},
            files={**setup.files, _FILTER: seccomp.program()},
        )
        self._box: Supervised | None = None
        self._control: socket.socket | None = None

    def run(self, stdin: bytes, limits: Limits) -> Finished:
        """Run the script's `main()` once, to its end. A box that was found dead is replaced, once.

        Args:
            stdin: What the job reads.
            limits: What the job may use.

        Raises:
            UnavailableError: No box can be made, or a job could not enter it.
        """
        finished = self._run(stdin, limits)
        return self._run(stdin, limits) if finished.reason == "closed" else finished

    def _run(self, stdin: bytes, limits: Limits) -> Finished:
        if self._box is None:
            self._open()
        box, control = self._box, self._control
        assert box is not None and control is not None
        WATCHER.rearm(box.watched, limits)
        finished = self._job(box, control, stdin, limits)
        WATCHER.rearm(box.watched, _FOREVER)  # from here on no limit of this job can fall on the next
        if box.reason or finished.reason:
            self.close()
        if finished.returncode == NOT_ENTERED:
            raise UnavailableError("A job could not enter its sandbox: " + self._complaint(box))
        return finished

    def close(self) -> None:
        """End the box. A later `run` opens another."""
        if self._box is not None and self._control is not None:
            self._control.close()
            self._box.close()
            self._box = self._control = None

    def _open(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            python, _ = command.interpreter()
            program = [python, "-S", "-s", "-B", _ZYGOTE, str(there.fileno()), _FILTER, self._script]
            box = start(program, limits=_FOREVER, setup=self._setup, trusted=True, descriptors=(there.fileno(),))
        if here.recv(16) != b"ready":
            box.close()
            raise UnavailableError("A warm sandbox did not start: run `cycleqd validate` to see what is missing.")
        self._box, self._control = box, here

    def _job(self, box: Supervised, control: socket.socket, stdin: bytes, limits: Limits) -> Finished:
        pipes = [os.pipe(), os.pipe()]
        readers = [reader for reader, _ in pipes]
        lent = [memory_file(stdin), *(writer for _, writer in pipes)]
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(control, [_message(limits)], lent)
        finally:
            for descriptor in lent:
                os.close(descriptor)
        try:
            stdout, stderr = collect(readers, limits.output, lambda: box.watched.stop("output"))
        finally:
            for reader in readers:
                os.close(reader)
        try:
            status = control.recv(16)
        except ConnectionResetError:
            status = b""
        return Finished(int(status or b"-9"), stdout, stderr, box.reason or ("" if status else "closed"))

    def _complaint(self, box: Supervised) -> str:
        assert box.process.stderr is not None
        os.set_blocking(box.process.stderr.fileno(), False)
        return (box.process.stderr.read() or b"unknown reason").decode("utf-8", "replace").strip()


class WarmPool:
    """Warm boxes for several threads: at most `size`, opened when first needed."""

    def __init__(self, script: str, setup: command.Setup, size: int) -> None:
        self._boxes = [WarmPython(script, setup) for _ in range(size)]
        self._free: queue.LifoQueue[WarmPython] = queue.LifoQueue()
        for box in self._boxes:
            self._free.put(box)

    def run(self, stdin: bytes, limits: Limits) -> Finished:
        """`WarmPython.run` in the box that was used last; waits while all are in use.

        Args:
            stdin: What the job reads.
            limits: What the job may use.
        """
        box = self._free.get()
        try:
            return box.run(stdin, limits)
        except BaseException:
            box.close()
            raise
        finally:
            self._free.put(box)

    def close(self) -> None:
        """End all boxes."""
        for box in self._boxes:
            box.close()


def _message(limits: Limits) -> bytes:
    uid = command.unused_uid() if command.entry() is command.Entry.ROOT else None
    bounds = limits.of_each_process(command.SLACK)
    return json.dumps({"uid": uid, "scratch": limits.scratch, "files": limits.files, "limits": bounds}).encode()
