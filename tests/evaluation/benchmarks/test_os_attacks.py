"""Attacks from the shell of the OS benchmark's machines. Each runs and must fail to have its effect.

They use the machine's own /usr as root, so they need bubblewrap and nothing else; the limits are those of an episode,
made smaller so that reaching them is quick. Interpreters replaced in an image: test_os.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cycleqd.evaluation.benchmarks.os.needs import machine_offers
from cycleqd.evaluation.benchmarks.os.task import OsTask
from cycleqd.evaluation.sandbox.ids import id_range
from cycleqd.evaluation.sandbox.keeper import ENVIRONMENT
from cycleqd.evaluation.sandbox.limits import MIB
from cycleqd.evaluation.sandbox.machine import LIMITS, Keeper, Machine, MachinePlan
from cycleqd.evaluation.sandbox.shell import Shell
from cycleqd.evaluation.sandbox.watch import usage
from cycleqd.evaluation.task import Outcome, Sample, Workspace
from tests.os_play import bash

Run = Callable[[str], str]
ROOT = {"bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr", "var", "dev", "proc", "run", "tmp"}
ROOT |= {"etc", "home", "mnt", "opt", "root", "srv"}
SMALL = replace(LIMITS, cpu=20, memory=128 * MIB, address_space=1024 * MIB, processes=24, scratch=8 * MIB)


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    if problem := machine_offers().problem:
        pytest.skip(problem)
    with Keeper() as running:
        yield running


@pytest.fixture
def plan() -> MachinePlan:
    return MachinePlan(proc=machine_offers().proc, limits=SMALL)


@pytest.fixture
def machine(keeper: Keeper, plan: MachinePlan) -> Iterator[Machine]:
    with keeper.open(plan) as opened:
        yield opened


@pytest.fixture
def shell(machine: Machine) -> Iterator[Shell]:
    opened = Shell(machine, seconds=5)
    yield opened
    opened.close()


@pytest.fixture
def run(shell: Shell) -> Run:
    return lambda command: shell.execute(command)[0]


def processes_with(mark: str) -> list[int]:
    """Processes of this machine that have `mark` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes to hold within five seconds."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_files_of_the_host_are_out_of_sight(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host-secret")
    secret.chmod(0o644)
    assert "host-secret" not in run(f"cat {secret} /proc/1/root{secret} /proc/*/cwd{secret} 2>/dev/null; echo tried")
    root = run("ls -A / | tr '\\n' ' '").split()
    assert set(root) <= ROOT
    assert run("cut -d: -f1 /etc/passwd") == "root\nnobody"


def test_links_lead_nowhere_outside(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host-secret")
    assert "host-secret" not in run(f"ln -s {tmp_path} /root/way; cat /root/way/secret; echo tried")
    up = "/".join([".."] * 20)
    assert "host-secret" not in run(f"cat {up}{tmp_path}/secret /proc/self/root/{up}{tmp_path}/secret; echo tried")


def test_files_of_another_sample_are_out_of_sight(run: Run, keeper: Keeper, plan: MachinePlan) -> None:
    run("echo mine > /srv/mine; echo mine > /tmp/mine; echo mine > /dev/shm/mine")
    with keeper.open(plan) as other:
        seen = other.run(["bash", "-c", "cat /srv/mine /tmp/mine /dev/shm/mine; pgrep -c bash"], 5).stdout
        assert b"mine" not in seen


def test_environment_and_descriptors_of_the_host_are_out_of_sight(
    run: Run, monkeypatch: pytest.MonkeyPatch, keeper: Keeper
) -> None:
    monkeypatch.setenv("CYCLEQD_TEST_SECRET", "host-secret")
    names = run("compgen -e | sort | tr '\\n' ' '").split()
    assert set(names) <= set(ENVIRONMENT) | {"COLUMNS", "LINES", "OLDPWD", "PWD", "SHLVL", "TERM", "_"}
    assert "host-secret" not in run("cat /proc/*/environ | tr '\\0' '\\n'")
    assert run("ls /proc/1/fd | tr '\\n' ' '").split() in ([], ["0", "1", "2"])
    assert run("ls /proc/self/fd | tr '\\n' ' '").split() in ([], ["0", "1", "2", "3"])  # 3 is ls's own


def test_nothing_is_left_running_after_close(keeper: Keeper, plan: MachinePlan) -> None:
    with keeper.open(plan) as machine:
        shell = Shell(machine, seconds=5)
        shell.execute("setsid nohup sleep 98761 > /dev/null 2>&1 & disown; (trap '' HUP TERM INT; sleep 98761) &")
        shell.execute("cat | sleep 98761")
        assert eventually(lambda: len(processes_with("98761")) >= 2)
        shell.close()
    assert eventually(lambda: processes_with("98761") == [])


def test_everything_ends_with_the_keeper(plan: MachinePlan) -> None:
    with Keeper() as keeper:
        machine = keeper.open(plan)
        shell = Shell(machine, seconds=5)
        shell.execute("sleep 98762 &")
        assert eventually(lambda: processes_with("98762") != [])
    assert eventually(lambda: processes_with("98762") == [])
    shell.close()
    machine.close()


STAGE = """
import os, time
from cycleqd.evaluation.sandbox.machine import Keeper, MachinePlan
from cycleqd.evaluation.sandbox.shell import Shell
keeper = Keeper().__enter__()
Shell(keeper.open(MachinePlan(proc=False)), 5).execute("sleep 98764 &")
print("ready", flush=True)
time.sleep(60)
"""


def test_everything_ends_with_a_killed_stage(keeper: Keeper) -> None:
    with subprocess.Popen([sys.executable, "-c", STAGE], stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None and stage.stdout.readline() == b"ready\n"
        assert eventually(lambda: processes_with("sleep\x0098764") != [])
        stage.kill()
    assert eventually(lambda: processes_with("sleep\x0098764") == [])


def test_a_fork_bomb_stays_small(keeper: Keeper, plan: MachinePlan) -> None:
    with keeper.open(plan) as machine, keeper.open(plan) as other:
        shell = Shell(machine, seconds=2)
        shell.execute("bomb() { bomb | bomb & }; bomb")
        assert 3 < len(machine.processes()) <= SMALL.processes + 4
        assert other.run(["bash", "-c", "for i in 1 2 3; do (exit 3); done; echo fine"], 5).stdout == b"fine\n"
        shell.close()


@pytest.mark.parametrize(
    "command", ["x=$(tr '\\0' x < /dev/zero)", "head -c 900M /dev/zero | tail -c 900M > /dev/null"]
)
def test_a_memory_bomb_ends_its_machine_or_itself(run: Run, machine: Machine, command: str) -> None:
    run(command)
    assert eventually(lambda: machine.reason == "memory" or usage(machine.roots()).memory <= SMALL.memory)


def test_spinning_in_the_background_ends_the_machine(keeper: Keeper, plan: MachinePlan) -> None:
    with keeper.open(replace(plan, limits=replace(SMALL, cpu=1))) as machine:
        machine.run(["bash", "-c", "while :; do (:); done"], 5)
        assert machine.reason == "cpu"


def test_the_disk_does_not_fill(run: Run) -> None:
    said = run("for d in /root /tmp /var/tmp /dev/shm; do head -c 20M /dev/zero > $d/big; done; df -P / | tail -1")
    assert said.count("No space left on device") >= 2
    assert int(run("du -sbc /root /tmp /var/tmp /dev/shm | tail -1 | cut -f 1")) <= 2 * SMALL.scratch + MIB
    files = run("i=0; while [ $i -lt 40000 ] && : > /srv/f$i; do i=$((i + 1)); done 2> /dev/null; echo $i")
    assert 0 < int(files) < 33000


def test_files_larger_than_allowed_are_cut(keeper: Keeper, plan: MachinePlan) -> None:
    with keeper.open(replace(plan, limits=replace(SMALL, file_size=MIB))) as machine:
        done = machine.run(["bash", "-c", "head -c 5M /dev/zero > /srv/big; stat -c %s /srv/big"], 5)
        assert int(done.stdout) == MIB
        flood = machine.run(["bash", "-c", "exec yes"], 5)
        assert not flood.ok and len(flood.stdout) <= MIB


def test_open_files_are_bounded_and_limits_cannot_be_raised(run: Run) -> None:
    assert "128" in run('for i in $(seq 10 300); do eval "exec $i> /dev/null" || break; done')
    assert "cannot modify limit" in run("ulimit -n 100000")
    assert "cannot modify limit" in run("ulimit -u 100000")


def test_endless_output_is_cut(machine: Machine) -> None:
    shell = Shell(machine, seconds=0.5)
    began = time.monotonic()
    text, ended = shell.execute("yes")
    assert not ended and time.monotonic() - began < 5
    assert text.startswith("y\ny\n") and len(text) <= 1 << 16
    shell.close()


def test_killing_reaches_only_the_machine(run: Run, machine: Machine) -> None:
    run("kill -9 $PPID; kill -9 1; kill -9 -1")
    run(f"kill -9 {os.getpid()} {os.getppid()}")
    assert machine.run(["bash", "-c", "echo lives"], 5).stdout == b"lives\n"


def test_capabilities_are_few_and_name_spaces_closed(run: Run) -> None:
    for attempt in (
        "mount -t tmpfs none /mnt",
        "umount -l /usr",
        "mount -o remount,rw /usr",
        "unshare -Ur true",
        "unshare -m true",
        "nsenter -t 1 -m true",
        "chroot / true",
        "mknod /srv/disk b 254 0",
        "echo c > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/sysrq",
        "touch /usr/x",
        "touch /dev/x",
        "date -s 2001-01-01",
        "hostname elsewhere",
        "dmesg",
    ):
        assert run(f"{{ {attempt}; }} > /dev/null 2>&1 && echo done") == "", attempt


def test_root_of_the_machine_is_nobody_outside(run: Run, machine: Machine) -> None:
    run("sleep 98763 &")
    assert eventually(lambda: processes_with("sleep\x0098763") != [])
    (pid,) = processes_with("sleep\x0098763")
    owner = int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Uid" in line).split()[1])
    assert owner == id_range()[0] != 0


def test_set_user_id_bits_give_nothing(run: Run) -> None:
    assert run("grep NoNewPrivs /proc/self/status") in ("NoNewPrivs:\t1", "")


def test_the_network_is_out_of_reach(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        port = server.getsockname()[1]
        assert run(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached; echo tried").endswith("tried")
        assert "reached" not in run("exec 3<>/dev/tcp/1.1.1.1/53 && echo reached; echo tried")
        assert run(f"[ -e {tmp_path}/socket ] && echo reached") == ""
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert run("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") in ("lo", "")


def test_terminal_escapes_do_not_reach_the_conversation(run: Run) -> None:
    text = run("printf '\\e[2J\\e]0;title\\a\\e[31mred\\e[0m\\e[?2004h\\e[?2004lplain\\x9b\\n'")
    assert "\x1b" not in text and "\x9b" not in text and "title" not in text
    assert run("echo next").endswith("next")  # pretending to be the line editor costs at most one's own output


def test_background_processes_that_hold_the_output_do_not_delay(machine: Machine, run: Run) -> None:
    began = time.monotonic()
    assert machine.run(["bash", "-c", "sleep 100 & echo started"], 5).stdout == b"started\n"
    assert run("sleep 100 & echo started").endswith("started")
    assert time.monotonic() - began < 4


def test_leaving_the_shell_ends_only_the_shell(shell: Shell, machine: Machine) -> None:
    shell.execute("exit")
    assert not shell.alive and shell.execute("echo x") == ("", True)
    assert machine.run(["true"], 5).ok


CHECKS = [("bash", "test -e /srv/done # the-check-itself"), ("bash", "! grep -q the-check-itself /tmp/seen")]


def test_checks_and_gold_cannot_be_watched(tmp_path: Path) -> None:
    """A watcher left behind copies every command line that it sees; the check's is not among them."""
    record = {"init_script": [], "start": None, "match": None, "check": CHECKS, "example_script": None}
    sample = Sample("0", {**record, "problem": [{"role": "user", "content": "x"}], "description": "x"})
    watcher = "while :; do cat /proc/[0-9]*/cmdline; done >> /tmp/seen 2> /dev/null &"
    with OsTask({"root": "host"}, Workspace(tmp_path)) as task:
        episode = task.start(sample)
        try:
            episode.next(bash(watcher))
            episode.next(bash("touch /srv/done; sleep 0.2; grep -c bash /tmp/seen"))
            assert not machine_offers().proc or "\n0" not in episode.messages[-1]["content"]
            episode.next("Act: finish")
            assert task.verdict(episode).passed
        finally:
            episode.close()


def test_a_machine_over_its_limit_is_an_error_not_a_score(tmp_path: Path) -> None:
    record = {"init_script": [], "start": None, "match": {"answer": "1"}, "check": [], "example_script": None}
    sample = Sample("0", {**record, "problem": [{"role": "user", "content": "x"}], "description": "x"})
    with OsTask({"root": "host"}, Workspace(tmp_path)) as task:
        episode = task.start(sample)
        try:
            assert episode.next(bash("head -c 1500M /dev/zero | tail -c 1500M > /dev/null; sleep 1")) is None
            verdict = task.verdict(episode)
            assert (verdict.outcome, verdict.reason) == (Outcome.ERROR, "the machine was ended by the limit on memory")
        finally:
            episode.close()
