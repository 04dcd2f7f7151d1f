"""Starting a boxed process, talking to it, and ending it with everything it started."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox import command, seccomp
from cycleqd.evaluation.sandbox.descriptors import collect, memory_file, ready
from cycleqd.evaluation.sandbox.limits import Finished, Limits, Reason
from cycleqd.evaluation.sandbox.watch import WATCHER, Watched, kill

# bwrap's --die-with-parent looks at the *thread* that started it. One that lives as long as the program starts all.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")


def launch(
    argv: Sequence[str], descriptors: Sequence[int] = (), stdin: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start a program with no environment but PATH, from the thread whose end is this program's end.

    Args:
        argv: The program and its arguments.
        descriptors: Open descriptors that it inherits, besides its three streams.
        stdin: A descriptor to read from; a pipe, as stdout and stderr are, without one.
    """
    return _STARTER.submit(
        subprocess.Popen[bytes],
        list(argv),
        bufsize=0,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env={"PATH": command.ENVIRONMENT["PATH"]},
        cwd="/",
    ).result()


class Supervised:
    """A box that runs: its bwrap process, the watch over its tree, and its pipes.

    Use as a context manager: leaving it kills the box and waits until all of it is gone.
    """

    def __init__(self, process: subprocess.Popen[bytes], first: int | None, limits: Limits) -> None:
        """`first`: the number of the box's first process, with which everything in the box dies; None if none began."""
        self.process = process
        self.limits = limits
        self._init: int | None = None
        if first is not None:
            with suppress(ProcessLookupError):  # it has ended already
                self._init = os.pidfd_open(first)
        self.watched = Watched(lambda: [process.pid], limits, self.kill, files=lambda: _files(first, limits.scratch))
        WATCHER.add(self.watched)

    @property
    def reason(self) -> Reason:
        """The limit for which the watcher killed the box; empty while none was broken."""
        return self.watched.reason

    def kill(self) -> None:
        """Kill the box's first process, and so all of it."""
        if self._init is not None:
            kill(self._init)

    def wait(self) -> int:
        """Wait for the end of everything in the box (the watcher bounds it); returns the exit status."""
        if self._init is not None:
            ready(self._init)  # bwrap itself ends a little before the last of its box
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # while unreaped, the number stays ours
        WATCHER.remove(self.watched)
        if self._init is not None:
            os.close(self._init)
            self._init = None
        return self.process.wait()

    def close(self) -> None:
        """Kill the box, wait for its end, close the pipes. Calling it again does nothing."""
        if self.process.returncode is None:
            self.kill()
            self.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self) -> Finished:
        """Wait for the end, keeping up to `limits.output` bytes each of stdout and stderr; one more ends the box."""
        assert self.process.stdout and self.process.stderr
        pipes = [self.process.stdout.fileno(), self.process.stderr.fileno()]
        stdout, stderr = collect(pipes, self.limits.output, lambda: self.watched.stop("output"))
        code = self.wait()
        self.close()
        return Finished(code, stdout, stderr, self.reason)


def start(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    setup: command.Setup | None = None,
    stdin: bytes | None = None,
    trusted: bool = False,
    descriptors: Sequence[int] = (),
) -> Supervised:
    """Start a program in a fresh box.

    Args:
        argv: Path of the program in the box, and its arguments; never a shell string.
        limits: What the box may use; the defaults of `Limits` without it.
        setup: What the box shows besides the system's programs.
        stdin: What the program reads; without it stdin is a pipe (`process.stdin`).
        trusted: The program is ours and makes name spaces for others: it gets the rights for that, no filter of system
            calls and no limits from the kernel.
        descriptors: Open descriptors that it inherits.

    Raises:
        UnavailableError: No box can be made on this machine.
    """
    way, limits, setup = command.entry(), limits or Limits(), setup or command.Setup()
    if way is None:
        raise UnavailableError(" ".join(preflight()) or "The sandbox cannot be entered.")
    uid = command.BOX_UID if way is command.Entry.USER else command.unused_uid()
    files = {**command.accounts(uid if way is command.Entry.ROOT else command.BOX_UID), **setup.files}
    contents = {path: memory_file(content) for path, content in files.items()}
    program = b"" if trusted else seccomp.program()
    filter_file = memory_file(program) if program else None
    reader, info = os.pipe()
    opened = [*contents.values(), info, *([] if filter_file is None else [filter_file])]
    source = subprocess.PIPE if stdin is None else memory_file(stdin)
    try:
        line = command.box_command(
            argv,
            entry=way,
            uid=uid,
            limits=limits,
            setup=setup,
            contents=contents,
            seccomp=filter_file,
            info=info,
            trusted=trusted,
        )
        process = launch(line, [*opened, *descriptors], source)
    finally:
        for descriptor in opened if stdin is None else [*opened, source]:
            os.close(descriptor)
    with os.fdopen(reader, "rb") as report:
        return Supervised(process, _first_of(report.read()), limits)


def _first_of(report: bytes) -> int | None:
    """The process that --info-fd names; None when bwrap gave up before it."""
    try:
        return int(json.loads(report)["child-pid"])
    except ValueError:
        return None


def _files(process: int | None, size: int) -> int:
    """The most files in a scratch folder, of `size` bytes, of a process's box; 0 where it cannot be seen."""
    most = 0
    for folder in ("tmp", "dev/shm"):
        with suppress(OSError):
            found = os.statvfs(f"/proc/{process}/root/{folder}")
            if found.f_blocks * found.f_frsize == size:  # else this machine's: the box is still being made
                most = max(most, found.f_files - found.f_ffree)
    return most


def run(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    setup: command.Setup | None = None,
    stdin: bytes = b"",
) -> Finished:
    """Run a program in a fresh box to its end.

    Args:
        argv: Path of the program in the box, and its arguments; never a shell string.
        limits: What the box may use; the defaults of `Limits` without it.
        setup: What the box shows besides the system's programs.
        stdin: What the program reads.

    Raises:
        UnavailableError: No box can be made on this machine.
    """
    with start(argv, limits=limits, setup=setup, stdin=stdin) as box:
        return box.finish()


def preflight() -> list[str]:
    """Why no box can be made on this machine and how to change that, one sentence each; empty when it can."""
    missing = command.missing_programs()
    if missing:
        packages = {"bwrap": "bubblewrap"}
        install = " ".join(sorted({packages.get(name, "util-linux") for name in missing}))
        return [f"The sandbox needs {', '.join(missing)}, not found on PATH: run `apt-get install {install}`."]
    if command.entry() is None:
        reason = command.refusal(command.candidates()[-1])
        return [f"bubblewrap cannot make name spaces here ({reason}): {_allow()}, or run as root with CAP_SYS_ADMIN."]
    if not Path("/proc/thread-self/children").exists():
        return ["The sandbox counts memory by /proc/*/task/*/children: use a kernel built with CONFIG_PROC_CHILDREN."]
    return []


def _allow() -> str:
    """What lets bubblewrap make name spaces, by what the kernel says to a bare user name space."""
    tried = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False)
    if tried.returncode == 0:
        return (
            "a user name space can be made, but not filled; as root without capabilities, run as an ordinary user; in a"
            " container give it another AppArmor profile (appArmorProfile type Unconfined; with Docker or Podman"
            " --security-opt apparmor=unconfined); on Ubuntu set sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    refused = os.strerror(errno.EPERM).encode() in tried.stderr  # not ENOSPC, which is the sysctl's answer
    if refused and "\nSeccomp:\t2\n" in Path("/proc/self/status").read_text():
        return (
            "the seccomp profile of this container refuses them (Kubernetes' RuntimeDefault does), so give it another"
            " (seccompProfile type Unconfined; with Docker or Podman --security-opt seccomp=unconfined)"
        )
    return (
        "allow unprivileged user name spaces (sysctl user.max_user_namespaces=10000, and"
        " kernel.unprivileged_userns_clone=1 where that exists)"
    )
