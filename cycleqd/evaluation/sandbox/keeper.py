"""A small process that makes root boxes and starts programs in them, as `docker run` and `docker exec` do.

It is a process of its own because entering name spaces needs fork without threads, and because that is quick: a program
starts in a box within two milliseconds. Nothing of it is in a box, so nothing in a box can change what it reports.

    keeper ── handler ── bwrap ── bash, process 1 of the box          (request "open")
           └─ handler ── joins the box ── the program                 (request "enter")

A request is a message of one byte on a SEQPACKET socket with descriptors: of a file in memory with the request as JSON
(a model's answer may be in it, of any length), of a socket for the replies, then the request's own. The replies are
JSON: first the start's facts or {"error"}, then, when the program has ended, {"status"}. Closing the keeper's own
socket, or its death, ends every box.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from cycleqd.evaluation.sandbox import command, kernel

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where this process finds programs, and where those of a machine find theirs."""
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "HOSTNAME": "box"}
"""Of a machine's programs."""
KEPT = frozenset({0, 1, 3, 4, 5, 6, 7, 10, 18, 29, 31})
"""chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service, sys_chroot, audit_write, setfcap."""
_ROOTS_RIGHTS = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE")
_FOLDERS = ["dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "tmp", "usr", "var/log", "var/tmp"]
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost box\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
"""Folders and files of a machine without a root of its own."""
_STAGE = "/tmp"  # where a box's file system is put together, in a mount name space of its own
_TERMINAL_FLAGS = 32 | kernel.MS_NOSUID | 8  # remount, and as bwrap mounts it: nosuid, noexec
_TERMINALS = 32  # of a machine; the kernel has 4096 for all
_DESCRIPTORS = 16


def serve(requests: socket.socket) -> None:
    """Answer requests until the other end closes; each in a forked handler, reaped by the kernel.

    Args:
        requests: A SEQPACKET socket.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, _DESCRIPTORS)
        if not message:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # as they come they would stay open in every program
        if os.fork() == 0:
            _handle(requests, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _handle(requests: socket.socket, descriptors: list[int]) -> NoReturn:
    """In the handler: start the program, report its number, wait, report its status."""
    kernel.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    with socket.socket(fileno=descriptors[1]) as reply, os.fdopen(descriptors[0], "rb") as content:
        try:
            request = json.loads(content.read())
            action = {"open": _open, "enter": _enter, "unpack": _unpack}[request["do"]]
            pid, facts, beside = action(request, descriptors[2:])
            socket.send_fds(reply, [json.dumps(facts).encode()], beside)
            _, status = os.waitpid(pid, 0)
            reply.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
        except Exception as error:  # whatever a request holds, its own sender hears of it
            with suppress(OSError):  # when no one waits any more
                reply.send(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}).encode())
        finally:
            os._exit(0)


def _open(request: dict[str, Any], descriptors: list[int]) -> tuple[int, dict[str, Any], list[int]]:
    """Make a box; it lives until it is killed or this handler ends (its process 1 reads from our pipe)."""
    out, to_out = os.pipe()
    commands, to_commands = os.pipe()
    info, to_info = os.pipe()
    spaces = kernel.NEW_USER | kernel.NEW_MOUNT
    pid = fork_into(
        spaces, request["map"], lambda enter: _become_box(request, descriptors, enter, (commands, to_out), to_info)
    )
    for descriptor in (to_out, commands, to_info):
        os.close(descriptor)
    with suppress(BrokenPipeError):  # it has ended already, and its output is read next
        os.write(to_commands, b"echo ready\n")
    text = b""
    while b"ready\n" not in text and (chunk := os.read(out, 4096)):
        text += chunk
    if b"ready\n" not in text:
        raise RuntimeError(f"the box did not start: {text.decode(errors='replace').strip()}")
    first = os.pidfd_open(int(json.loads(os.read(info, 4096))["child-pid"]))
    _bound_terminals(first)
    return pid, {"bwrap": pid}, [first]


def _bound_terminals(process: int) -> None:
    """Limit how many terminals the box behind a pidfd may open; bwrap mounts their file system without a limit."""
    pid = os.fork()
    if pid == 0:
        _alone(lambda: _remount_terminals(process))
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError("the number of its terminals could not be limited")


def _remount_terminals(process: int) -> None:
    kernel.join(process, kernel.NEW_USER | kernel.NEW_MOUNT)
    kernel.mount("devpts", "/dev/pts", "devpts", _TERMINAL_FLAGS, f"mode=620,ptmxmode=666,max={_TERMINALS}")
    os._exit(0)


def _unpack(request: dict[str, Any], descriptors: list[int]) -> tuple[int, dict[str, Any], list[int]]:
    """Unpack the tar `descriptors[0]` into a new folder "root" in `descriptors[1]`, owned by the ids of the map."""
    owners = [] if request["map"][1] > 1 else ["--no-same-owner"]

    def become_tar(enter: Callable[[], None]) -> None:
        os.dup2(descriptors[0], 0)
        os.dup2(descriptors[2], 2)
        os.fchdir(descriptors[1])
        enter()
        become_root()
        os.mkdir("root")  # noqa: PTH102 (a relative path on purpose: the folders above may be closed to this user)
        os.chdir("root")
        os.execvpe("tar", ["tar", "--extract", "--preserve-permissions", "--numeric-owner", *owners], os.environ)

    pid = fork_into(kernel.NEW_USER, request["map"], become_tar)
    return pid, {}, []


def fork_into(spaces: int, ids: Sequence[int], child: Callable[[Callable[[], None]], None]) -> int:
    """Fork a child that enters new name spaces and becomes another program; returns the child's number.

    Args:
        spaces: Bits of the kinds of name spaces (`kernel.unshare`); `kernel.NEW_USER` is among them.
        ids: The user and group ids that the child's 0, 1, … are outside: (first, count).
        child: Runs in the child and ends in exec. It calls its argument to enter the name spaces.

    Raises:
        OSError, CalledProcessError: The ids cannot be mapped; the child ends.
    """
    ready, to_ready = os.pipe()
    go, to_go = os.pipe()

    def enter() -> None:
        for descriptor in (ready, to_go):  # held here, they would keep either side waiting when the other has ended
            os.close(descriptor)
        kernel.unshare(spaces)
        os.write(to_ready, b"!")
        if not os.read(go, 1):
            raise OSError("the user ids could not be mapped")

    pid = os.fork()
    if pid == 0:
        _alone(lambda: child(enter))
    os.close(to_ready)
    try:
        if os.read(ready, 1):
            write_maps(pid, ids)
            os.write(to_go, b"!")
    finally:
        for descriptor in (ready, go, to_go):
            os.close(descriptor)
    return pid


def write_maps(pid: int, ids: Sequence[int]) -> None:
    """Map the user and group ids 0, 1, … of a new user name space.

    Args:
        pid: The process in it.
        ids: Which ids they are outside: (first, count).
    """
    first, count = ids
    if count == 1:  # which any user may map to itself, if its groups are to stay what they are
        Path(f"/proc/{pid}/uid_map").write_text(f"0 {os.geteuid()} 1")
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/gid_map").write_text(f"0 {os.getegid()} 1")
    elif os.geteuid() == 0:
        Path(f"/proc/{pid}/uid_map").write_text(f"0 {first} {count}")
        Path(f"/proc/{pid}/gid_map").write_text(f"0 {first} {count}")
    else:
        for program in ("newuidmap", "newgidmap"):
            subprocess.run([program, str(pid), "0", str(first), str(count)], check=True, capture_output=True)


def _alone(action: Callable[[], None]) -> NoReturn:
    """Run `action`, which ends in exec, in a forked child: no exception may travel on into the copied stack."""
    try:
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and exec keeps that
            signal.signal(ignored, signal.SIG_DFL)
        action()
    except Exception as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def _become_box(
    request: dict[str, Any], descriptors: list[int], enter: Callable[[], None], stdio: tuple[int, int], info: int
) -> None:
    os.dup2(stdio[0], 0)
    os.dup2(stdio[1], 1)
    os.dup2(stdio[1], 2)
    enter()
    # Still with our own user id, whom the folders above are open to; an overlay takes its layers from its own mounts.
    lower = os.open(request["lower"], os.O_PATH | os.O_DIRECTORY) if request["lower"] else -1
    become_root()
    kernel.mount("none", "/", "", kernel.MS_RECURSIVE | kernel.MS_PRIVATE)
    size = f"size={request['scratch']},nr_inodes={request['files']},mode=0755"
    kernel.mount("box", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
    for folder in ("upper", "work", "root", "shm"):
        Path(_STAGE, folder).mkdir(mode=0o755)
    kernel.mount("shm", f"{_STAGE}/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size.replace("0755", "1777"))
    if lower >= 0:
        options = f"lowerdir=/proc/self/fd/{lower},upperdir={_STAGE}/upper,workdir={_STAGE}/work,userxattr"
        kernel.mount("overlay", f"{_STAGE}/root", "overlay", kernel.MS_NODEV, options)
    else:
        _skeleton(Path(_STAGE, "root"))
    kernel.set_limits(request["limits"])
    for descriptor in (info, *descriptors):
        os.set_inheritable(descriptor, True)
    os.execve(request["bwrap"], _bwrap(request, info, descriptors), {})


def become_root() -> None:
    """Take on user and group 0 of the user name space that this process is in."""
    with suppress(PermissionError):  # a map of one id forbids it; the groups of an ordinary user stay
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _skeleton(root: Path) -> None:
    """An empty system around the machine's own /usr."""
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("tmp", "var/tmp"):
        (root / folder).chmod(0o1777)
    for name, text in _TEXTS.items():
        (root / name).write_text(text)


def _bwrap(request: dict[str, Any], info: int, descriptors: list[int]) -> list[str]:
    line = ["bwrap", "--bind", f"{_STAGE}/root", "/", *([] if request["lower"] else command.system())]
    line += ["--dev", "/dev", "--bind", f"{_STAGE}/shm", "/dev/shm"]
    line += ["--remount-ro", "/dev"]
    if request["proc"]:
        line += ["--proc", "/proc"]
        if Path("/proc/tty/driver").is_dir():  # shut to all but the real root, so `find /` would fail
            line += ["--size", "4096", "--tmpfs", "/proc/tty/driver"]
    line += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", ENVIRONMENT["HOSTNAME"]]
    line += [*command.rights(_ROOTS_RIGHTS), *command.environment(ENVIRONMENT)]
    if descriptors:
        line += ["--seccomp", str(descriptors[0])]
    line += ["--info-fd", str(info), "--chdir", "/", "--die-with-parent", "--as-pid-1", "--new-session"]
    return [*line, "--", "bash"]


def _enter(request: dict[str, Any], descriptors: list[int]) -> tuple[int, dict[str, Any], list[int]]:
    """Start a program in the box behind the pidfd `descriptors[0]`; stdin, stdout and stderr are the next three."""
    kernel.join(descriptors[0], kernel.ALL_SPACES)
    pid = os.fork()
    if pid == 0:
        _alone(lambda: _become_program(request, descriptors[1:4], bytes.fromhex(request["filter"])))
    return pid, {"handler": os.getpid()}, [os.pidfd_open(pid)]


def _become_program(request: dict[str, Any], stdio: list[int], seccomp: bytes) -> None:
    os.setsid()
    for target, descriptor in enumerate([fcntl.fcntl(source, fcntl.F_DUPFD, 64) for source in stdio]):
        os.dup2(descriptor, target)
    os.closerange(3, 1024)
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    become_root()
    kernel.set_limits(request["limits"])
    kernel.keep_capabilities(KEPT)
    kernel.no_new_privileges()
    if seccomp:
        kernel.filter_calls(seccomp)
    os.chdir("/")
    os.execvpe(request["argv"][0], request["argv"], request["environment"])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as served:
        serve(served)
