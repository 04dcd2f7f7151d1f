"""Boxes: what comes back, ways in, preflight. What hostile programs try is in test_attacks.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd.errors import UnavailableError
from cycleqd.evaluation import sandbox
from cycleqd.evaluation.sandbox import Finished, Limits, Setup, WarmPool, WarmPython, command, seccomp
from cycleqd.evaluation.sandbox.watch import descendants

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("exec_stdin.py")
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(autouse=True)
def _possible() -> None:
    if problems := sandbox.preflight():
        pytest.skip(" ".join(problems))


def python(code: str, limits: Limits | None = None, **setup: object) -> Finished:
    program, binds = sandbox.interpreter()
    given_binds = setup.pop("binds", {})
    assert isinstance(given_binds, dict)
    return sandbox.run(
        [program, "-I", "-S", "-c", code],
        limits=limits,
        setup=Setup(binds={**binds, **given_binds}, **setup),  # type: ignore[arg-type]
    )


def test_a_program_reads_writes_and_ends() -> None:
    program, binds = sandbox.interpreter()
    code = "import sys; sys.stderr.write('aside'); print(sys.stdin.read()[::-1], end=''); sys.exit(3)"
    text = "abc" * 100_000
    finished = sandbox.run([program, "-c", code], stdin=text.encode(), setup=Setup(binds=binds))
    assert finished == Finished(3, text[::-1].encode(), b"aside")
    assert not finished.ok


def test_output_of_exactly_the_limit_is_whole() -> None:
    assert python("print('x' * 999)", Limits(output=1000)) == Finished(0, b"x" * 999 + b"\n", b"")
    assert python("print('x' * 1000)", Limits(output=1000)).stdout == b"x" * 1000


def test_binds_files_and_environment(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("bound")
    tmp_path.chmod(0o755)  # what a box shows must be readable by every user
    code = "import os; print(open('/data/given').read(), open('/etc/motd').read(), os.environ['NAME'], os.getcwd())"
    finished = python(code, binds={"/data": tmp_path}, files={"/etc/motd": b"file"}, environment={"NAME": "value"})
    assert finished.stdout == b"bound file value /tmp\n"


def test_a_program_that_is_not_there_is_an_exit_status() -> None:
    assert sandbox.run(["/no/such/program"]).returncode in (1, 127)


def test_a_live_box_is_talked_to_and_closed() -> None:
    with sandbox.start(["/usr/bin/cat"]) as box:
        assert box.process.stdin is not None
        assert box.process.stdout is not None
        box.process.stdin.write(b"ping")
        assert os.read(box.process.stdout.fileno(), 10) == b"ping"
        inside = list(descendants(box.process.pid))
    assert inside
    assert not any(Path(f"/proc/{pid}").exists() for pid in inside)
    box.close()


def test_a_box_outlives_the_thread_that_started_it() -> None:
    """bwrap's --die-with-parent means the thread that started it."""
    boxes: list[sandbox.Supervised] = []
    starter = threading.Thread(target=lambda: boxes.append(sandbox.start(["/usr/bin/cat"])))
    starter.start()
    starter.join()
    time.sleep(0.1)
    with boxes[0] as box:
        assert box.process.poll() is None


def test_boxes_die_with_this_program() -> None:
    code = (
        "import time\nfrom cycleqd.evaluation import sandbox\n"
        "from cycleqd.evaluation.sandbox.watch import descendants\n"
        "box = sandbox.start(['/usr/bin/sleep', '300'])\ntime.sleep(0.2)\n"
        "print(*descendants(box.process.pid), flush=True)\nimport os; os.kill(os.getpid(), 9)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).stdout
    pids = [int(pid) for pid in told.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_filter_refuses_and_allows() -> None:
    code = (
        "import ctypes, socket, threading, subprocess\nlibc = ctypes.CDLL(None)\n"
        "print(libc.unshare(0x10000000), libc.shmget(0, 4096, 0o1600))\n"
        "socket.socketpair(); t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "print(subprocess.run(['/bin/echo', 'child'], capture_output=True).stdout)"
    )
    assert python(code).stdout == b"-1 -1\nthread\nb'child\\n'\n"
    assert len(seccomp.program()) % 8 == 0


# Ways in


def as_another(tmp_path: Path, prefix: list[str], code: str) -> str:
    """What a program of this project prints after `prefix` has changed who it is."""
    if os.geteuid() != 0 or shutil.which(SYSTEM_PYTHON) is None:
        pytest.skip("needs root and a Python that every user can read, to become somebody else")
    for name in ("components", "cycleqd"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SCRIPT, tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{code}"
    done = subprocess.run([*prefix, SYSTEM_PYTHON, "-B", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def elsewhere(tmp_path: Path, prefix: list[str]) -> str:
    """What a small program prints that enters boxes after `prefix` has changed who it is."""
    code = f"""
from pathlib import Path
from cycleqd.evaluation.sandbox import Limits, Setup, WarmPython, entry, preflight, run
assert preflight() == []
assert run(["/usr/bin/id", "-u"]).ok
assert run(["/usr/bin/sleep", "60"], limits=Limits(wall=0.5)).reason == "wall"
for path in ({str(tmp_path)!r}, "/etc/shadow", "/proc/1"): assert not run(["/usr/bin/ls", path]).ok
box = WarmPython("/job/exec_stdin.py", Setup(binds={{"/job/exec_stdin.py": Path({str(tmp_path / "exec_stdin.py")!r})}}))
code = b"import os, ctypes; print(os.getpid(), os.listdir('/tmp'), ctypes.CDLL(None).unshare(0x10000000))"
assert box.run(code, Limits()).stdout == b"1 [] -1\\n"
print(entry().value, box.run(b"print('again')", Limits()).stdout.decode(), end="")
box.close()
"""
    return as_another(tmp_path, prefix, code)


@pytest.mark.parametrize(
    ("prefix", "way"),
    [
        (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "user"),
        (["setpriv", "--bounding-set=-sys_admin"], "dropped"),
        (["unshare", "--user", "--map-root-user"], "user"),
        ([], "root"),
    ],
    ids=["nobody", "root without rights", "root of a user name space", "root"],
)
def test_every_way_in(tmp_path: Path, prefix: list[str], way: str) -> None:
    assert elsewhere(tmp_path, prefix) == f"{way} again\n"


def test_user_ids_are_unused_and_unprivileged() -> None:
    ids = {command.unused_uid() for _ in range(100)}
    assert len(ids) == 100
    assert all(1000 < uid < 1 << 31 for uid in ids)


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command.entry.cache_clear()
    try:
        assert sandbox.preflight() == [
            "The sandbox needs bwrap, prlimit, setpriv, not found on PATH: run `apt-get install bubblewrap util-linux`."
        ]
        with pytest.raises(UnavailableError, match="apt-get install bubblewrap"):
            sandbox.run(["/usr/bin/true"])
    finally:
        command.entry.cache_clear()


def test_no_name_spaces_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a bwrap that fails as it does where name spaces are forbidden."""
    for name in ("bwrap", "prlimit", "setpriv"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    monkeypatch.setitem(command.ENVIRONMENT, "PATH", f"{tmp_path}:/usr/bin")
    command.entry.cache_clear()
    try:
        (sentence,) = sandbox.preflight()
        assert "cannot make name spaces here" in sentence
    finally:
        command.entry.cache_clear()


REFUSED = "the seccomp profile of this container refuses them"
TURNED_OFF = "sysctl user.max_user_namespaces=10000"
UNFILLED = "as root without capabilities, run as an ordinary user"
ALLOW_ALL = "b'\\x06\\0\\0\\0\\0\\0\\xff\\x7f'"  # return SECCOMP_RET_ALLOW


@pytest.mark.parametrize(
    ("prefix", "filtered", "reason"),
    [
        (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "seccomp.program()", REFUSED),
        (["unshare", "--user", "--map-root-user"], ALLOW_ALL, TURNED_OFF),
        (["setpriv", "--bounding-set=-all", "--inh-caps=-all"], ALLOW_ALL, UNFILLED),
    ],
    ids=["a filter that refuses", "a filter that allows, and no name spaces", "a filter that allows, and no rights"],
)
def test_the_reason_is_found_by_trying(tmp_path: Path, prefix: list[str], filtered: str, reason: str) -> None:
    """A seccomp filter is blamed for what it refuses, not for being there."""
    code = f"""
from pathlib import Path
from cycleqd.evaluation.sandbox import entry, kernel, preflight, seccomp
if {reason == TURNED_OFF}: Path("/proc/sys/user/max_user_namespaces").write_text("0")  # of this name space
kernel.no_new_privileges()
kernel.filter_calls({filtered})
assert entry() is None
print(*preflight())
"""
    said = as_another(tmp_path, prefix, code)
    assert said.startswith("bubblewrap cannot make name spaces here (")
    assert [one for one in (REFUSED, TURNED_OFF, UNFILLED) if one in said] == [reason]


# Warm boxes


@pytest.fixture
def pool() -> Iterator[WarmPool]:
    with_two = WarmPool("/job/exec_stdin.py", Setup(binds={"/job/exec_stdin.py": SCRIPT}), 2)
    yield with_two
    with_two.close()


def test_a_pool_serves_many_threads(pool: WarmPool) -> None:
    with ThreadPoolExecutor(4) as threads:
        finished = list(threads.map(lambda n: pool.run(f"print({n})".encode(), Limits()), range(40)))
    assert [int(one.stdout) for one in finished] == list(range(40))


def test_limits_are_each_jobs_own(pool: WarmPool) -> None:
    assert pool.run(b"while True: pass", Limits(cpu=0.3, wall=30)).reason == "cpu"
    for _ in range(3):
        assert pool.run(
            b"import time; t = time.process_time()\nwhile time.process_time() - t < 0.2: pass", Limits(cpu=0.4)
        ).ok


def test_an_exit_status_is_the_jobs_own(pool: WarmPool) -> None:
    assert pool.run(b"import os; os._exit(7)", Limits()) == Finished(7, b"", b"")
    assert pool.run(b"1 / 0", Limits()) == Finished(1, b"", b"ZeroDivisionError: division by zero\n")
    assert pool.run(b"import os; os._exit(255)", Limits()).returncode == 254


def test_a_script_that_does_not_load_is_said(tmp_path: Path) -> None:
    box = WarmPython("/job/missing.py", Setup())
    with pytest.raises(UnavailableError, match="did not start"):
        box.run(b"", Limits())


# Text


def test_terminal_escapes_are_shown_as_text() -> None:
    assert sandbox.printable("\x1b]0;title\x07red\x1b[31m\u202eabc\r\n\tok\x9b") == (
        "\\x1b]0;title\\x07red\\x1b[31m\\u202eabc\\x0d\n\tok\\x9b"
    )


@given(st.text())
def test_printable_text_steers_no_terminal(text: str) -> None:
    shown = sandbox.printable(text)
    assert all(c in "\n\t" or c >= " " for c in shown)
    assert sandbox.printable(shown) == shown
