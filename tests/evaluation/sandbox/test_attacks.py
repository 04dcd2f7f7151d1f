"""Hostile programs. Each attack must fail to have an effect, in a fresh box and in a job of a warm one."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cycleqd.evaluation import sandbox
from cycleqd.evaluation.sandbox import Finished, Limits, Setup, WarmPython

MIB = 1 << 20
LIMITS = Limits(wall=20, cpu=10, memory=400 * MIB, address_space=2048 * MIB, scratch=8 * MIB, file_size=64 * MIB)
Attack = Callable[..., Finished]


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    script = Path(__file__).with_name("exec_stdin.py")
    box = WarmPython("/job/exec_stdin.py", Setup(binds={"/job/exec_stdin.py": script}))
    yield box
    box.close()


@pytest.fixture(params=["fresh", "warm"])
def attack(request: pytest.FixtureRequest) -> Attack:
    if problems := sandbox.preflight():
        pytest.skip(" ".join(problems))
    if request.param == "warm":
        box = request.getfixturevalue("warm")
        return lambda code, limits=LIMITS: box.run(code.encode(), limits)
    python, binds = sandbox.interpreter()

    def fresh(code: str, limits: Limits = LIMITS) -> Finished:
        return sandbox.run([python, "-I", "-S", "-c", code], limits=limits, setup=Setup(binds=binds))

    return fresh


def marked(marker: str) -> list[str]:
    """The processes of this machine whose command line holds `marker`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [str(process)] if marker.encode() in process.read_bytes() else []
        except OSError:
            continue
    return found


def refusals(finished: Finished) -> list[str]:
    """The lines that an attack printed, one for each thing it tried; all must be errors."""
    assert finished.ok, finished
    return finished.stdout.decode().splitlines()


TRY = """
def attempt(what, *arguments):
    try:
        print("SUCCEEDED", what(*arguments))
    except BaseException as problem:
        print(type(problem).__name__)
"""


def test_the_hosts_files_are_not_there(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "gold.json").write_text("secret")
    paths = [tmp_path / "gold.json", Path(__file__).resolve(), "/etc/shadow", "/etc/hostname", "/root", "/home", "/var"]
    paths += ["/proc/self/environ", "/proc/1/root/etc/shadow", "/sys/kernel", "/run", f"/proc/{os.getpid()}/environ"]
    code = TRY + f"import os\nfor path in {[str(p) for p in paths]}: attempt(os.stat, path)"
    assert refusals(attack(code)) == ["FileNotFoundError"] * len(paths)


def test_the_hosts_accounts_are_not_there(attack: Attack) -> None:
    finished = attack("print(open('/etc/passwd').read(), open('/etc/group').read())")
    names = {line.split(":")[0] for line in finished.stdout.decode().split()}
    assert names == {"root", "box"}


def test_the_environment_is_empty(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-leak")
    names = set(attack("import os; print(*os.environ)").stdout.decode().split())
    assert names <= {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}


def test_the_secrets_of_another_process_are_out_of_reach(attack: Attack) -> None:
    with subprocess.Popen(["/usr/bin/sleep", "60"], env={"AWS_SECRET_ACCESS_KEY": "do-not-leak"}) as holder:
        code = f"""{TRY}
import ctypes
for pid in ({holder.pid}, {os.getpid()}, 1, "self"):
    for name in ("environ", "mem", "cmdline", "fd/0"): attempt(open, f"/proc/{{pid}}/{{name}}", "rb")
print(ctypes.CDLL(None).process_vm_readv({holder.pid}, None, 0, None, 0, 0))
"""
        assert refusals(attack(code)) == [*["FileNotFoundError"] * 16, "-1"]
        holder.kill()


def test_nothing_outside_can_be_written(attack: Attack) -> None:
    paths = ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/etc/passwd", "/dev/x", "/job/x", "/python/x", "/lib/x"]
    code = TRY + f"for path in {paths}: attempt(open, path, 'w')\nimport os\nattempt(os.mkdir, '/y')\n"
    code += (
        "attempt(os.rename, '/usr', '/u')\nattempt(os.chmod, '/usr/bin/env', 0o777)\nattempt(os.remove, '/etc/passwd')"
    )
    answers = refusals(attack(code))
    assert len(answers) == len(paths) + 4
    assert set(answers) <= {"OSError", "PermissionError", "FileNotFoundError"}


def test_no_socket_of_the_host_answers(attack: Attack, tmp_path: Path) -> None:
    """As S3, MLflow (TCP) and MariaDB (a socket file) listen."""
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    name = f"cycleqd-{uuid.uuid4().hex}"
    listeners = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
    port = listeners[0].getsockname()[1]
    listeners[1].bind(str(tmp_path / "server.sock"))
    listeners[2].bind("\0" + name)
    for listener in listeners:
        listener.listen()
        listener.setblocking(False)
    code = f"""{TRY}
import socket
def reach(family, address):
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(2)
    connection.connect(address)
    return connection.recv(1)
attempt(reach, socket.AF_INET, ("127.0.0.1", {port}))
attempt(reach, socket.AF_INET, ("192.0.2.1", 80))
attempt(reach, socket.AF_INET6, ("::1", {port}))
attempt(reach, socket.AF_UNIX, {str(tmp_path / "server.sock")!r})
attempt(reach, socket.AF_UNIX, "\\0{name}")
attempt(reach, 40, (2, 22))
attempt(socket.socket, 16, socket.SOCK_RAW)
attempt(socket.getaddrinfo, "example.com", 80)
"""
    answers = refusals(attack(code))
    assert len(answers) == 8
    assert not any(answer.startswith("SUCCEEDED") for answer in answers)
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()


def test_a_fork_bomb_stays_in_its_box(attack: Attack) -> None:
    marker = uuid.uuid4().hex
    code = f"""
import os
while True:
    try:
        if os.fork() == 0: MARK = {marker!r}
    except OSError: pass
"""
    limits = Limits(wall=2, cpu=30, memory=4096 * MIB, processes=16)
    bystander: list[Finished] = []
    python, binds = sandbox.interpreter()
    beside = "import os\nfor _ in range(5): os.waitpid(os.fork() or os._exit(0), 0)"
    other = threading.Thread(
        target=lambda: bystander.append(sandbox.run([python, "-S", "-c", beside], setup=Setup(binds=binds)))
    )
    other.start()
    finished = attack(code, limits)
    other.join()
    assert finished.reason in ("wall", "processes")
    assert bystander[0].ok
    assert marked(marker) == []


def test_processes_and_threads_are_counted(attack: Attack) -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError: print(made)
os._exit(0)
"""
    finished = attack(code.replace("print(made)", "os.write(1, str(made).encode())"), Limits(processes=8))
    assert 1 <= int(finished.stdout) <= 8


@pytest.mark.parametrize(
    "code",
    [
        "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
        "import os, time\nfor _ in range(3): os.fork()\nkept = [bytearray(1 << 20) for _ in range(200)]\ntime.sleep(9)",
        "import mmap\nkept = []\nwhile True:\n    m = mmap.mmap(-1, 1 << 24); m.write(bytes(1 << 24)); kept.append(m)",
    ],
    ids=["heap", "many processes", "shared mappings"],
)
def test_a_memory_bomb_is_stopped(attack: Attack, code: str) -> None:
    assert attack(code).reason in ("memory", "processes")


def test_address_space_is_bounded(attack: Attack) -> None:
    assert refusals(attack(TRY + "attempt(bytearray, 3 << 30)")) == ["MemoryError"]


def test_memory_beside_the_count_is_refused(attack: Attack) -> None:
    """memfd and System V segments are memory of no process."""
    code = TRY + "import os, ctypes\nattempt(os.memfd_create, 'x')\nprint(ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600))"
    assert refusals(attack(code)) == ["PermissionError", "-1"]


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_a_filled_disk_is_a_small_one(attack: Attack, folder: str) -> None:
    code = f"""
written = 0
try:
    while True:
        with open(f"{folder}/{{written}}", "wb") as file: file.write(bytes(1 << 20))
        written += 1
except OSError: print(written)
"""
    assert int(attack(code).stdout) <= LIMITS.scratch // MIB


def test_one_file_is_bounded(attack: Attack) -> None:
    code = TRY + "attempt(lambda: open('/tmp/large', 'wb').write(bytes(3 << 20)))"
    assert refusals(attack(code, Limits(file_size=1 * MIB))) == ["OSError"]


@pytest.mark.parametrize("stream", [1, 2])
def test_endless_output_is_cut_and_ended(attack: Attack, stream: int) -> None:
    finished = attack(f"import os\nwhile True: os.write({stream}, b'x' * 65536)", Limits(output=100_000))
    assert finished.reason == "output"
    assert len(finished.stdout if stream == 1 else finished.stderr) == 100_000


def test_a_daemon_does_not_survive(attack: Attack) -> None:
    marker = uuid.uuid4().hex
    code = f"""
import os, signal, time
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        os.execv("/usr/bin/sleep", [{marker!r}, "300"])
    os._exit(0)
time.sleep(0.3)
print("gone")
"""
    assert attack(code).stdout == b"gone\n"
    assert marked(marker) == []


def test_killing_others_kills_nobody_outside(attack: Attack) -> None:
    code = """
import os, signal
for pid in (1, os.getppid(), -1, 2, 3):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
"""
    attack(code)
    assert attack("print('next')").stdout == b"next\n"


def test_the_kernel_is_not_asked_for_more(attack: Attack) -> None:
    code = f"""{TRY}
import ctypes, os, fcntl
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1: raise OSError(ctypes.get_errno(), name)
for flag in (0x10000000, 0x20000000, 0x00020000, 0x40000000): attempt(call, "unshare", flag)
attempt(call, "mount", b"none", b"/tmp", b"tmpfs", 0, 0)
attempt(call, "umount", b"/tmp")
attempt(call, "chroot", b"/tmp")
attempt(call, "ptrace", 0, 0, 0, 0)
attempt(call, "setns", 0, 0)
attempt(call, "syscall", 56, 0x10000011, 0, 0, 0, 0)
attempt(os.setuid, 0)
attempt(os.setgid, 0)
attempt(os.setgroups, [0])
attempt(open, "/dev/tty")
attempt(open, "/dev/mem")
attempt(fcntl.ioctl, 0, 0x5412, b"x")
"""
    if os.uname().machine != "x86_64":
        code = code.replace('"syscall", 56', '"syscall", 220')
    answers = refusals(attack(code))
    assert len(answers) == 16
    assert not any(answer.startswith("SUCCEEDED") for answer in answers), answers


def test_set_uid_programs_give_nothing(attack: Attack) -> None:
    code = (
        "import subprocess\nfor c in (['su','-c','id -u'],['sudo','-n','id','-u'],['mount','-t','tmpfs','x','/tmp']):\n"
    )
    code += "    try: print(subprocess.run(c, capture_output=True, timeout=5).returncode != 0)\n"
    code += "    except (OSError, subprocess.TimeoutExpired): print(True)"
    assert attack(code).stdout.split() == [b"True"] * 3


def test_links_lead_nowhere(attack: Attack, tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_text("untouched")
    code = f"""{TRY}
import os
os.symlink({str(target)!r}, "/tmp/link")
attempt(open, "/tmp/link")
attempt(open, "/tmp/link", "w")
attempt(os.link, "/etc/passwd", "/tmp/hard")
os.symlink("../../../../../../etc/shadow", "/tmp/up")
attempt(open, "/tmp/up")
"""
    assert set(refusals(attack(code))) <= {"FileNotFoundError", "OSError", "PermissionError"}
    assert target.read_text() == "untouched"


def test_no_open_file_of_the_host_comes_along(attack: Attack, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        code = """
import os
for number in range(256):
    try: os.fstat(number)
    except OSError: continue
    print(number)
"""
        assert attack(code).stdout.split() == [b"0", b"1", b"2"]


def test_sleeping_ends_by_the_clock_and_spinning_by_the_processor(attack: Attack) -> None:
    assert attack("import time; time.sleep(60)", Limits(wall=1)).reason == "wall"
    spun = attack("while True: pass", Limits(wall=60, cpu=1))
    assert spun.reason == "cpu" or spun.returncode in (-24, 128 + 24)


def test_a_job_leaves_nothing_for_the_next(warm: WarmPython) -> None:
    first = warm.run(
        b"import json, os, sys\njson.dumps = None\nsys.modules['os'].getpid = None\n"
        b"open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w').write('x')\n"
        b"if os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(60)\n",
        LIMITS,
    )
    assert first.ok
    code = b"import json, os\nprint(json.dumps([os.listdir('/tmp'), os.listdir('/dev/shm'), os.getpid()]))"
    assert warm.run(code, LIMITS).stdout == b"[[], [], 1]\n"


def test_a_killed_warm_box_is_replaced(warm: WarmPython) -> None:
    assert warm.run(b"import time; time.sleep(60)", Limits(wall=0.5)).reason == "wall"
    assert warm.run(b"print('again')", LIMITS).stdout == b"again\n"
