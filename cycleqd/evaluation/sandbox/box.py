"""Starting a boxed process, talking to it, and ending it with everything it started."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox import command, seccomp
from cycleqd.evaluation.sandbox.limits import Finished, Limits, Reason
from cycleqd.evaluation.sandbox.ready import ready
from cycleqd.evaluation.sandbox.watch import WATCHER, Watched

# bwrap's --die-with-parent looks at the *thread* that started it. One that lives as long as the program starts all.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")


def launch(argv: Sequence[str], descriptors: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start `argv` with three pipes and no environment but PATH, from the thread whose end is the program's end."""
    return _STARTER.submit(
        subprocess.Popen[bytes],
        list(argv),
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env={"PATH": command.ENVIRONMENT["PATH"]},
        cwd="/",
    ).result()


class Supervised:
    """A box: its bwrap process, the watch over its tree, and its three pipes.

    Use as a context manager: leaving it kills the box and waits until all of it is gone. `reason` names the limit
    ended it, if one did.
    """

    def __init__(self, process: subprocess.Popen[bytes], init: int | None, limits: Limits) -> None:
        """`init`: a pidfd of the box's first process, with which everything in the box dies; None if it never began."""
        self.process = process
        self.limits = limits
        self._init = init
        self.watched = Watched(process.pid, limits, kill=lambda _: self.kill())
        WATCHER.add(self.watched)

    @property
    def reason(self) -> Reason:
        """The limit for which the watcher killed the box; empty while none was broken."""
        return self.watched.reason

    def kill(self) -> None:
        """Kill the box's first process, and so all of it."""
        if self._init is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)

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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def communicate(self, stdin: bytes = b"") -> Finished:
        """Send all of `stdin`, collect stdout and stderr up to `limits.output` each, wait for the end."""
        process, kept = self.process, {"stdout": bytearray(), "stderr": bytearray()}
        assert process.stdin and process.stdout and process.stderr
        rest = memoryview(stdin)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, "stdout")
            selector.register(process.stderr, selectors.EVENT_READ, "stderr")
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while selector.get_map():
                for key, _ in selector.select():
                    if key.data is None:
                        rest = _feed(selector, process, rest)
                    elif not (chunk := os.read(key.fd, 1 << 16)):
                        selector.unregister(key.fileobj)
                    elif not keep(kept[key.data], chunk, self.limits.output):
                        self.watched.stop("output")
        code = self.wait()
        self.close()
        return Finished(code, bytes(kept["stdout"]), bytes(kept["stderr"]), self.reason)


def keep(kept: bytearray, chunk: bytes, limit: int) -> bool:
    """Append to `kept` what stays within `limit` bytes; False when that was not all of `chunk`."""
    room = limit - len(kept)
    kept += chunk[:room]
    return len(chunk) <= room


def _feed(selector: selectors.BaseSelector, process: subprocess.Popen[bytes], rest: memoryview) -> memoryview:
    assert process.stdin
    try:
        written = os.write(process.stdin.fileno(), rest[: 1 << 16]) if rest else 0
    except BrokenPipeError:
        written = len(rest)
    if written == len(rest):
        selector.unregister(process.stdin)
        process.stdin.close()
    return rest[written:]


def start(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    setup: command.Setup | None = None,
    trusted: bool = False,
    descriptors: Sequence[int] = (),
) -> Supervised:
    """Start `argv` (a path in the box and its arguments, never a shell string) in a fresh box.

    `trusted`: a program of ours that makes name spaces for others: no filter, no limits from the kernel, and the rights
    for that. `descriptors`: open files that it inherits. Raises UnavailableError where no box can be made.
    """
    way, limits, setup = command.entry(), limits or Limits(), setup or command.Setup()
    if way is None:
        raise UnavailableError(" ".join(preflight()) or "The sandbox cannot be entered.")
    uid = command.BOX_UID if way is command.Entry.USER else command.unused_uid()
    files = {**command.accounts(uid if way is command.Entry.ROOT else command.BOX_UID), **setup.files}
    contents = {path: memory_file(content) for path, content in files.items()}
    seccomp_filter = memory_file(seccomp.program()) if not trusted and seccomp.supported() else None
    opened = [*contents.values(), *([] if seccomp_filter is None else [seccomp_filter])]
    reader, info = os.pipe()
    opened.append(info)
    try:
        inside = command.trusted_command if trusted else command.box_command
        line = inside(
            argv, entry=way, limits=limits, setup=setup, contents=contents, seccomp=seccomp_filter, uid=uid, info=info
        )
        process = launch(line, [*opened, *descriptors])
    finally:
        for descriptor in opened:
            os.close(descriptor)
    with os.fdopen(reader, "rb") as report:
        return Supervised(process, _init_of(report.read()), limits)


def _init_of(report: bytes) -> int | None:
    """A pidfd of the process that --info-fd names; None when bwrap gave up before it, or it has ended already."""
    try:
        return os.pidfd_open(json.loads(report)["child-pid"])
    except (ValueError, ProcessLookupError):
        return None


def run(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    setup: command.Setup | None = None,
    stdin: bytes = b"",
) -> Finished:
    """Run `argv` in a fresh box to its end."""
    with start(argv, limits=limits, setup=setup) as box:
        return box.communicate(stdin)


def memory_file(content: bytes) -> int:
    """An open file descriptor at the start of a nameless file that holds `content` for good. The caller closes it."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


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
