"""What no count of processes and their memory sees: sockets, files without content, terminals, watches, lost children.

Each attack runs in a fresh box and in a job of a warm one, and in a machine of the OS benchmark.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cycleqd.evaluation.sandbox import MIB, Keeper, Limits, Machine, MachinePlan
from cycleqd.evaluation.sandbox.machine import LIMITS as MACHINE
from cycleqd.evaluation.sandbox.watch import usage
from tests.evaluation.sandbox.test_attacks import Attack, attack, warm

__all__ = ["attack", "warm"]  # fixtures

LIMITS = Limits(wall=20, cpu=10, memory=200 * MIB, processes=32, files=1000)

FILL_SOCKETS = """
import os, socket, time
kept = []
for child in range(8):
    if os.fork() == 0: break
try:
    while True:
        a, b = socket.socketpair(*KIND)
        kept += [a, b]
        a.setblocking(False)
        while True: a.send(bytes(60000))
except OSError: pass
time.sleep(10)
"""
FILL_LOOPBACK = """
import socket, time
server = socket.create_server(("127.0.0.1", 0)); server.listen(100)
kept = []
while True:
    a = socket.create_connection(server.getsockname()); kept += [a, server.accept()[0]]
    a.setblocking(False)
    try:
        while True: a.send(bytes(1 << 20))
    except OSError: pass
"""


def available() -> int:
    """Bytes of memory that this machine has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.parametrize("kind", ["1, 1, 0", "1, 2, 0", "1, 5, 0"], ids=["stream", "datagram", "packets"])
def test_the_buffers_of_sockets_count_as_memory(attack: Attack, kind: str) -> None:
    assert attack(FILL_SOCKETS.replace("*KIND", kind), LIMITS).reason == "memory"


def test_the_buffers_of_connections_count_as_memory(attack: Attack) -> None:
    finished = attack(FILL_LOOPBACK, LIMITS)
    assert finished.reason == "memory" or b"refused" in finished.stderr or b"unreachable" in finished.stderr


def test_a_few_sockets_are_free(attack: Attack) -> None:
    code = "import asyncio\nasync def f(): return 3\nprint(asyncio.run(f()), asyncio.run(f()))"
    assert attack(code, LIMITS).stdout == b"3 3\n"


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_files_without_content_are_few(attack: Attack, folder: str) -> None:
    code = f"""
import os
made = 0
try:
    while made < 200000:
        os.close(os.open(f"{folder}/{{made}}", os.O_CREAT)); made += 1
        if made % 500 == 0: import time; time.sleep(0.03)
except OSError: pass
print(made)
"""
    finished = attack(code, LIMITS)
    assert finished.reason == "files" or int(finished.stdout) <= LIMITS.files


def test_a_box_has_no_terminals_and_no_watches(attack: Attack) -> None:
    code = """
import ctypes, os
for call in (lambda: os.openpty(), lambda: os.open("/dev/ptmx", os.O_RDWR)):
    try: print("SUCCEEDED", call())
    except OSError: print("refused")
libc = ctypes.CDLL(None)
print(libc.inotify_init(), libc.inotify_init1(0), libc.fanotify_init(0, 0))
"""
    assert attack(code, LIMITS).stdout.split() == [b"refused", b"refused", b"-1", b"-1", b"-1"]


def test_a_box_that_waits_for_a_processor_is_not_late(attack: Attack) -> None:
    """Beside as many spinning processes as would take three quarters of every core."""
    spin = (
        f"import os\nfor _ in range({3 * (os.cpu_count() or 1)}):\n    if os.fork() == 0:\n        while True: pass\n"
    )
    work = spin + "import time, os\nwhile time.process_time() < 0.5: pass\nprint('done')\nos.kill(-1, 9)"
    assert b"done" in attack(work, Limits(wall=200, cpu=60)).stdout


HIDING = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            for _ in range(ROUNDS): pass
            os._exit(0)
    except OSError: pass
"""


@pytest.mark.parametrize("rounds", [1, 100_000, 3_000_000], ids=["short", "longer", "long"])
def test_time_of_children_that_nobody_waits_for_counts(attack: Attack, rounds: int) -> None:
    """Whoever ignores SIGCHLD is told nothing of their time."""
    limits = Limits(wall=300, cpu=2, processes=64)
    assert attack(HIDING.replace("ROUNDS", str(rounds)), limits).reason == "cpu"


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper() as running:
        yield running


@pytest.fixture
def machine(keeper: Keeper) -> Iterator[Machine]:
    limits = replace(MACHINE, memory=200 * MIB, files=2000, processes=64)
    with keeper.open(MachinePlan(proc=False, limits=limits)) as opened:
        yield opened


def python(machine: Machine, code: str, seconds: float = 10) -> str:
    return machine.run(["python3", "-c", code], seconds).stdout.decode()


def test_sockets_of_a_machine_count_as_memory(machine: Machine) -> None:
    python(machine, FILL_SOCKETS.replace("*KIND", "1, 1, 0"))
    assert machine.reason == "memory"


def test_terminals_of_a_machine_are_few(machine: Machine) -> None:
    code = "import os\nkept = []\ntry:\n    while True: kept.append(os.openpty())\nexcept OSError: print(len(kept))"
    assert 1 <= int(python(machine, code)) <= 32


@pytest.mark.parametrize("folder", ["/srv", "/dev/shm"])
def test_files_of_a_machine_are_few(machine: Machine, folder: str) -> None:
    code = (
        f"import os\nmade = 0\ntry:\n    while True: os.close(os.open(f'{folder}/{{made}}', os.O_CREAT)); made += 1\n"
    )
    assert 100 <= int(python(machine, code + "except OSError: print(made)")) <= 2000


@pytest.mark.parametrize(
    "answer", ["\U0001f600" * 32000, "ä" * 100_000, "\ud800", "\x00", "a" * 300_000, "\\" * 100_000]
)
def test_any_argument_reaches_its_program_or_fails_by_itself(keeper: Keeper, machine: Machine, answer: str) -> None:
    """Longer than a socket's message, not in UTF-8, or what no program can be given."""
    code = "import sys; print(len(sys.argv[1]))"
    done = machine.run(["python3", "-c", code, answer], 10)
    assert done.returncode == 127 or int(done.stdout) == len(answer)
    assert machine.run(["echo", "next"], 5).stdout == b"next\n"


def test_usage_counts_the_sockets_of_the_boxs_network_only(machine: Machine) -> None:
    pairs = [socket.socketpair() for _ in range(200)]
    assert usage(machine.roots()).memory < 100 * MIB
    for pair in pairs:
        for one in pair:
            one.close()
