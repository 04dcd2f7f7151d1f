"""The private server: private, boxed, and gone afterwards, however its owner ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.benchmarks.db.mariadb import box as mariadb_box
from cycleqd.evaluation.benchmarks.db.mariadb.box import missing
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.sandbox import command

REPOSITORY = Path(__file__).parents[3]
OWNER = """
import sys, time
from pathlib import Path
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
with MariaDB(Path(sys.argv[1])) as server:
    with server.admin() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT VERSION(), @@sql_mode")
        print(*cursor.fetchone(), server._keeper.pid, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _programs() -> None:
    if lacks := missing():
        pytest.skip(lacks[0])


def _owner(scratch: Path, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(scratch), then], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )


def _gone(pid: int, scratch: Path) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() and not list(scratch.iterdir()):
            return True
        time.sleep(0.1)
    return False


def _children(pid: int) -> list[int]:
    found = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def test_the_server_is_gone_afterwards(tmp_path: Path) -> None:
    with MariaDB(tmp_path) as server:
        keeper = server._keeper.pid
        assert list(tmp_path.iterdir()) == [server.folder]
        assert server.start_seconds > 0
    assert _gone(keeper, tmp_path)


def test_the_server_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), MariaDB(tmp_path) as server:
        keeper = server._keeper.pid
        raise ZeroDivisionError
    assert _gone(keeper, tmp_path)


def test_the_server_is_gone_after_its_owner_is_killed(tmp_path: Path) -> None:
    with _owner(tmp_path, "wait") as owner:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline().split()[-1])
        family = _children(keeper)
        owner.send_signal(signal.SIGKILL)
    assert _gone(keeper, tmp_path)
    assert family and all(_gone(pid, tmp_path) for pid in family)


def test_killing_the_keeper_stops_the_server(tmp_path: Path) -> None:
    with MariaDB(tmp_path) as server:
        family = _children(server._keeper.pid)
        os.kill(server._keeper.pid, signal.SIGKILL)
        server._keeper.wait()
        assert not server.alive
    assert family and all(_gone(pid, tmp_path) for pid in family)


def test_the_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = MariaDB(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.__enter__).result()
    time.sleep(0.3)
    try:
        server.admin().close()
    finally:
        server.__exit__(None, None, None)


def test_only_the_owner_may_enter_its_folder_and_nobody_connects_without_a_password(tmp_path: Path) -> None:
    import pymysql

    with MariaDB(tmp_path) as server:
        assert server.folder.stat().st_mode & 0o077 == 0
        for user in ("root", "", "mariadb.sys", "mysql"):
            with pytest.raises(pymysql.OperationalError):
                server.connect(user, "")


def test_there_is_no_network(tmp_path: Path) -> None:
    with MariaDB(tmp_path) as server:
        with server.admin() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@skip_networking, @@port")
            assert cursor.fetchone() == (1, 0)
        inner = _children(server._keeper.pid)[-1]
        assert Path(f"/proc/{inner}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        devices = Path(f"/proc/{inner}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_the_server_sees_the_system_and_its_data_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "neighbour").write_text("secret")
    with MariaDB(tmp_path) as server:
        inner = _children(server._keeper.pid)[-1]
        root = Path(f"/proc/{inner}/root")
        assert sorted(path.name for path in root.iterdir() if path.name not in ("bin", "sbin", "lib", "lib64")) == [
            "data",
            "dev",
            "etc",
            "spill",
            "tmp",
            "usr",
        ]
        assert {path.name for path in (root / "etc").iterdir()} <= {"ld.so.cache", "alternatives"}
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{inner}/status").read_text().splitlines())
        assert int(status["CapEff"], 16) == 0
        if command.entry() is command.Entry.ROOT:
            assert int(status["Uid"].split()[0]) > 65535
        # with every privilege of SQL, the box is what holds
        with server.admin() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT LOAD_FILE('/etc/passwd'), LOAD_FILE(%s)", (str(tmp_path / "neighbour"),))
            assert cursor.fetchone() == (None, None)


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with MariaDB(deep) as server:
        server.admin().close()
    with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as other:
        other.connect(str(deep / "socket"))


def test_two_servers_at_once(tmp_path: Path) -> None:
    with MariaDB(tmp_path) as one, MariaDB(tmp_path) as two:
        with one.admin() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE mine")
        with two.admin() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW DATABASES LIKE 'mine'")
            assert cursor.fetchone() is None


def test_a_plain_user_can_run_it(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("all the other tests of this file run as a plain user here")
    import pymysql

    uid = 54321
    python = Path("/usr/bin/python3")
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True
    )
    scratch = Path("/tmp", f"plain-{os.getpid()}")
    if version.stdout.strip() != "True":
        pytest.skip("this needs a /usr/bin/python3 of version 3.11 or newer, which every user may run")
    scratch.mkdir(mode=0o700)
    try:
        os.chown(scratch, uid, uid)
        paths = os.pathsep.join([str(REPOSITORY), str(Path(pymysql.__file__).parents[1])])
        done = subprocess.run(
            [python, "-c", OWNER, str(scratch), "leave"],
            capture_output=True, text=True, user=uid, group=uid, extra_groups=[], cwd="/",
            env={"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "MariaDB" in done.stdout
        assert not list(scratch.iterdir())
    finally:
        scratch.rmdir()


def test_a_box_that_cannot_be_made_is_said_before_it_is_needed() -> None:
    """Root without the right to map itself (setfcap, Linux 5.12): other boxes can be made there, this one cannot."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give up rights")
    code = "from cycleqd.evaluation.benchmarks.db.mariadb.box import missing; print(*missing(), sep='\\n')"
    rights = ["setpriv", "--bounding-set=-sys_admin,-setfcap", "--inh-caps=-all"]
    done = subprocess.run([*rights, sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.startswith("The DB task runs MariaDB in a box, which cannot be made here: bwrap: "), done
    assert len(done.stdout.splitlines()) == 1


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb_box, "PATH", str(tmp_path))
    lacks = mariadb_box.missing()
    assert len(lacks) == 2 and "mariadbd" in lacks[0] and "apt-get install mariadb-server" in lacks[0]
    assert all(sentence.count(". ") == 0 for sentence in lacks)
    with pytest.raises(UnavailableError, match="mariadbd"), MariaDB(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
