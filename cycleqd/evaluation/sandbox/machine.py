"""Boxes with a root file system of their own, users and several programs: a small machine for each sample.

    with Keeper() as keeper, keeper.open(MachinePlan(lower=Path("/…/root"))) as machine:
        ended = machine.run(["bash", "-c", "id -un"], seconds=5)      # b"root\\n"

The root is an overlay, thrown away with the machine, over a read-only folder; or this machine's own /usr, read-only, in
an otherwise empty root. All user ids in it are unprivileged ones outside. docs/benchmarks-os.md describes them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox import seccomp
from cycleqd.evaluation.sandbox.descriptors import memory_file, ready
from cycleqd.evaluation.sandbox.ids import id_range
from cycleqd.evaluation.sandbox.keeper import ENVIRONMENT, PATH
from cycleqd.evaluation.sandbox.limits import MIB, Finished, Limits
from cycleqd.evaluation.sandbox.turnstile import Turnstile
from cycleqd.evaluation.sandbox.watch import WATCHER, Watched, descendants, kill, stop

LIMITS = Limits(wall=3600, cpu=60, memory=512 * MIB, address_space=2048 * MIB, processes=64, scratch=64 * MIB)
"""Of a whole machine. `wall` spans the waiting for the model between its programs."""
_DESCRIPTORS = 1 << 14  # a live machine takes five, and every sample may have one


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """What a machine is made of. `lower`: its root, owned by the ids of machines; None for this machine's own /usr."""

    lower: Path | None = None
    proc: bool = True
    limits: Limits = LIMITS


class Keeper:
    """The process that makes machines (see keeper.py). Use as a context manager; leaving it ends every machine.

    `turns` lets many programs run in its machines at once, or one alone.
    """

    def __init__(self) -> None:
        self.turns = Turnstile()

    def __enter__(self) -> Self:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            root = Path(__file__).resolve().parents[3]
            self._process = subprocess.Popen(
                [sys.executable, "-SP", str(Path(__file__).with_name("keeper.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"PATH": PATH, "PYTHONPATH": str(root)},
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> tuple[socket.socket, dict[str, Any], int]:
        """Send a request; returns the socket of its replies, the first reply and the descriptor with it (or -1).

        Args:
            request: What to do, as keeper.py reads it.
            descriptors: Open descriptors that go with it.

        Raises:
            UnavailableError: The keeper could not do it.
        """
        reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        content = memory_file(json.dumps(request).encode())
        try:
            with theirs:
                socket.send_fds(self._socket, [b"?"], [content, theirs.fileno(), *descriptors])
            message, beside, _, _ = socket.recv_fds(reply, 4096, 1)
            facts = json.loads(message or b'{"error": "the keeper has ended"}')
            if "error" in facts:
                raise UnavailableError(
                    f"A box could not be made or entered: {facts['error']}; docs/benchmarks-os.md says what it needs."
                )
        except BaseException:
            reply.close()
            raise
        finally:
            os.close(content)
        return reply, facts, beside[0] if beside else -1

    def open(self, plan: MachinePlan) -> Machine:
        """Make a machine.

        Args:
            plan: What it is made of.

        Raises:
            UnavailableError: The kernel refuses; the message has its reason.
        """
        request = {
            "do": "open",
            "map": id_range(),
            "lower": str(plan.lower) if plan.lower else "",
            "scratch": plan.limits.scratch,
            "files": plan.limits.files,
            "proc": plan.proc,
            "limits": plan.limits.of_each_process(),
            "bwrap": shutil.which("bwrap"),
        }
        program = seccomp.program()
        descriptors = [memory_file(program)] if program else []
        try:
            reply, facts, pidfd = self.ask(request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return Machine(self, plan, reply, facts, pidfd)

    def unpack(self, tar: Path, folder: Path) -> None:
        """Unpack a tar into a new folder "root", owned by the ids that machines have.

        Args:
            tar: The archive.
            folder: Where "root" is made; anybody must be able to write there.

        Raises:
            UnavailableError: tar failed; the message has its reason.
        """
        with tar.open("rb") as source, tempfile.TemporaryFile() as errors:
            target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                descriptors = [source.fileno(), target, errors.fileno()]
                reply, _, _ = self.ask({"do": "unpack", "map": id_range()}, descriptors)
            finally:
                os.close(target)
            with reply:
                status = json.loads(reply.recv(4096) or b"{}").get("status", 1)
            if status != 0:
                errors.seek(0)
                reason = errors.read(300).decode(errors="replace").strip()
                raise UnavailableError(f"{tar} could not be unpacked into {folder}: {reason or 'tar ended'}.")


class Program:
    """A program that was started in a machine. `handler` is the number of the process that waits for it outside."""

    def __init__(self, machine: Machine, reply: socket.socket, facts: Mapping[str, Any], process: int) -> None:
        self.handler = int(facts["handler"])
        self._machine, self._reply, self._process = machine, reply, process

    def wait(self, seconds: float | None) -> int | None:
        """Its exit status as subprocess gives it, 128 when its machine was ended; None when it still runs.

        Args:
            seconds: How long to wait at most; None waits without end.
        """
        if not ready(self._reply.fileno(), seconds)[0]:
            return None
        message = self._reply.recv(4096)
        self._machine.forget(self)
        self._reply.close()
        os.close(self._process)
        return int(json.loads(message).get("status", 128)) if message else 128

    def kill(self) -> None:
        """Kill the program, not what it has started."""
        kill(self._process)


class Machine:
    """One box. Programs started in it share its files, processes and users. Close it exactly once, or use `with`."""

    def __init__(
        self, keeper: Keeper, plan: MachinePlan, reply: socket.socket, facts: Mapping[str, Any], process: int
    ) -> None:
        self._keeper, self._plan, self._reply, self._process = keeper, plan, reply, process
        self._bwrap = int(facts["bwrap"])
        self._programs: list[Program] = []
        self._lock = threading.Lock()
        self.busy = False
        self.turns = keeper.turns
        self._watched = Watched(self.roots, plan.limits, self._kill, pause=lambda: 0.1 if self.busy else 1.0)
        WATCHER.add(self._watched)

    @property
    def reason(self) -> str:
        """The limit for which the machine was ended, empty when none."""
        return self._watched.reason

    def roots(self) -> list[int]:
        """Processes outside whose descendants are exactly the machine's processes."""
        with self._lock:
            return [self._bwrap, *(program.handler for program in self._programs)]

    def forget(self, program: Program) -> None:
        """Take note that a program has ended.

        Args:
            program: The program, which has been waited for.
        """
        with self._lock:
            self._programs.remove(program)

    def _kill(self) -> None:
        kill(self._process)

    def start(
        self,
        argv: Sequence[str],
        stdio: tuple[int, int, int],
        environment: Mapping[str, str],
        *,
        terminal: bool = False,
    ) -> Program:
        """Start a program.

        Args:
            argv: Its name or path in the machine, and its arguments.
            stdio: Open descriptors that it gets as stdin, stdout and stderr.
            environment: Its whole environment.
            terminal: Make stdin its controlling terminal.
        """
        request = {
            "do": "enter",
            "argv": list(argv),
            "environment": dict(environment),
            "limits": self._plan.limits.of_each_process(),
            "terminal": terminal,
            "filter": seccomp.program().hex(),
        }
        program = Program(self, *self._keeper.ask(request, [self._process, *stdio]))
        with self._lock:
            self._programs.append(program)
        return program

    def run(self, argv: Sequence[str], seconds: float) -> Finished:
        """Run a program to its end, without input; what it leaves in the background runs on.

        One that takes too long is stopped until no other program runs in the keeper's machines, and then goes on alone
        for as long again, so that a busy machine does not decide. It is not started again, because what it has changed
        could not be undone. Its output goes to nameless files, so that a background process that holds them cannot
        delay the end.

        Args:
            argv: Its name or path in the machine, and its arguments.
            seconds: How long it may take, by the clock.
        """
        out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
        nothing = os.open(os.devnull, os.O_RDONLY)
        self.busy = True
        try:
            with self.turns.shared():
                program = self.start(argv, (nothing, out, err), ENVIRONMENT)
                status = program.wait(seconds)
            if status is None:
                status = self._wait_alone(program, seconds)
            late = status is None
            if late:
                program.kill()
                status = program.wait(None)
            texts = [os.pread(descriptor, self._plan.limits.output, 0) for descriptor in (out, err)]
            reason = self._watched.reason or ("wall" if late else "")
            return Finished(status if status is not None else 128, texts[0], texts[1], reason)
        finally:
            self.busy = False
            for descriptor in (out, err, nothing):
                os.close(descriptor)

    def _wait_alone(self, program: Program, seconds: float) -> int | None:
        stopped = stop([program.handler])
        with self.turns.alone():
            for pid in reversed(stopped):  # children first: `su` stops itself when it finds its child stopped
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            return program.wait(seconds)

    def settle(self, seconds: float) -> None:
        """Wait until what runs in the machine has finished starting.

        That is: for 0.1 s no process appears, ends, becomes another program or uses the processor.

        Args:
            seconds: How long to wait at most.
        """
        end, seen, same = time.monotonic() + seconds, self.processes(), 0
        if len(seen) <= 2:  # process 1 and the shell
            return
        while same < 5 and time.monotonic() < end:
            time.sleep(0.02)
            now = self.processes()
            same = same + 1 if now == seen and all(state == "S" for _, _, state in now) else 0
            seen = now

    def processes(self) -> set[tuple[int, str, str]]:
        """(pid outside, program, state) of everything in the machine."""
        found = set()
        for pid in descendants(*self.roots()):
            with suppress(FileNotFoundError, ProcessLookupError):
                before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
                found.add((pid, before.partition("(")[2], after.split()[0]))
        return found

    def freeze(self) -> None:
        """Stop (SIGSTOP) everything that runs in the machine; programs started later run."""
        stop(self.roots())

    def close(self) -> None:
        """Kill everything in the machine and wait until it is gone."""
        self._kill()
        for program in list(self._programs):
            program.wait(None)
        self._reply.recv(4096)  # sent when bwrap has ended, which is after the last process of the box
        WATCHER.remove(self._watched)
        self._reply.close()
        os.close(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
