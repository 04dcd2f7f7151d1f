"""A private MariaDB server for hostile SQL: started for one stage, gone with it.

    with MariaDB(scratch) as server:
        with server.admin() as connection: ...

No TCP, a socket in a folder that only this user may enter, a random administrator's password, and the server process
itself in bubblewrap: no network, a read-only system, nothing writable but its own data. `mariadb_database.py` adds the
databases and accounts for samples.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cycleqd.errors import UnavailableError

if TYPE_CHECKING:
    from pymysql.connections import Connection

KEEPER = Path(__file__).with_name("mariadb_keeper.py")
START_SECONDS = 60.0
INSIDE = "/data"
INSTALL = "install mariadb-server (Debian and Ubuntu: apt-get install mariadb-server)"

# Small logs and no flushing: the data need not survive anything, and a smaller set of files is made and removed sooner.
STORAGE = (
    "--innodb-log-file-size=4M",
    "--aria-log-file-size=8M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-innodb-doublewrite",
    "--innodb-fast-shutdown=3",
    "--innodb-buffer-pool-load-at-startup=0",
    "--innodb-buffer-pool-dump-at-shutdown=0",
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=1M",
)
# What a statement may take by default. A session can raise most of these for itself; the guard of mariadb_database.py cannot
# be raised from SQL.
LIMITS = (
    "--max-connections=200",
    "--max-allowed-packet=4M",
    "--max-heap-table-size=4M",
    "--tmp-memory-table-size=4M",
    "--tmp-disk-table-size=64M",
    "--max-session-mem-used=256M",
    "--innodb-temp-data-file-path=ibtmp1:12M:autoextend:max:256M",
)
# `sql_mode` is empty as the benchmark's verdicts need it, and the collation is the nearest to MySQL 8's default.
BEHAVIOUR = (
    "--skip-networking",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--skip-symbolic-links",
    "--local-infile=0",
    f"--secure-file-priv={INSIDE}/none",
    "--event-scheduler=DISABLED",
    "--enforce-storage-engine=InnoDB",
    "--sql-mode=",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_uca1400_nopad_ai_ci",
)


def missing() -> list[str]:
    """What this machine lacks for a private server, one sentence each with the way to get it; empty when it can run."""
    lacks = []
    for program in ("mariadbd", "mariadb-install-db"):
        if _find(program) is None:
            lacks.append(f"The DB task needs the program {program}, which is not on this machine: {INSTALL}.")
    bwrap = _find("bwrap")
    if bwrap is None:
        lacks.append("The DB task needs bubblewrap, which is not on this machine: install bubblewrap.")
    else:
        trial = subprocess.run([*_box(bwrap), "/usr/bin/true"], capture_output=True, text=True, check=False)
        if trial.returncode != 0:
            lacks.append(
                f"The DB task needs bubblewrap with user namespaces, which this machine refuses ({trial.stderr.strip()}): "
                "allow unprivileged user namespaces."
            )
    return lacks


class MariaDB:
    """The server, as a context manager. Its folder under `scratch` is removed on leaving and when this process dies.

    After entering, `folder` holds the data and `start_seconds` how long creating and starting took. Raises
    UnavailableError if a program is missing or the server does not start.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._password = secrets.token_hex(16)

    def __enter__(self) -> Self:
        if lacks := missing():
            raise UnavailableError(lacks[0])
        started = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir=self._scratch))
        # A socket's path may have 108 bytes only; through the descriptor of its folder it is short wherever that lies.
        self._folder_fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self._create()
            self._keeper = self._launch()
            self._await_ready()
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def alive(self) -> bool:
        """Whether the server process still runs."""
        return self._keeper.poll() is None

    def admin(self) -> Connection:
        """A connection with every privilege, for trusted statements only."""
        return self.connect("root", self._password)

    def connect(
        self, user: str, password: str, database: str | None = None, read_timeout: float | None = None
    ) -> Connection:
        """A new session of `user`: autocommit, utf8mb4, rows fetched as the server sends them (unbuffered cursors)."""
        import pymysql

        return pymysql.connect(
            unix_socket=f"/proc/self/fd/{self._folder_fd}/socket",
            user=user,
            password=password,
            database=database,
            charset="utf8mb4",
            autocommit=None,
            read_timeout=read_timeout,
            local_infile=False,
            ssl_disabled=True,  # a private socket; loading certificates takes 20 ms a connection
        )

    def _create(self) -> None:
        for name in ("db", "tmp", "none"):
            (self.folder / name).mkdir()
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={INSIDE}/db", f"--tmpdir={INSIDE}/tmp"]
        options = [
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--force",
            *STORAGE,
        ]
        done = subprocess.run(
            [*self._boxed(), *install, *options], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise UnavailableError(
                f"mariadb-install-db failed in {self.folder}: {(done.stderr or done.stdout)[-500:].strip()}"
            )
        init = self.folder / "init.sql"
        init.touch(mode=0o600)
        init.write_text(
            "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys' AND (User <> 'root' OR Host <> 'localhost');\n"
            "FLUSH PRIVILEGES;\n"
            f"ALTER USER root@localhost IDENTIFIED BY '{self._password}';\n"
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        place = [f"--datadir={INSIDE}/db", f"--tmpdir={INSIDE}/tmp", f"--socket={INSIDE}/socket"]
        files = [f"--init-file={INSIDE}/init.sql", f"--log-error={INSIDE}/log.err", f"--pid-file={INSIDE}/pid"]
        server = [*self._boxed(), "mariadbd", "--no-defaults", *place, *files, *STORAGE, *LIMITS, *BEHAVIOUR]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(self.folder), *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at a terminal is the owner's to handle
        )

    def _await_ready(self) -> None:
        import pymysql

        deadline = time.monotonic() + START_SECONDS
        while self.alive and time.monotonic() < deadline:
            try:
                self.admin().close()
            except pymysql.OperationalError:
                time.sleep(0.01)
            else:
                return
        log = self.folder / "log.err"
        tail = log.read_text(errors="replace")[-500:].strip() if log.exists() else "it left no log"
        raise UnavailableError(f"The private MariaDB server in {self.folder} did not start: {tail}.")

    def _stop(self) -> None:
        keeper: subprocess.Popen[bytes] | None = getattr(self, "_keeper", None)
        if keeper is not None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._folder_fd)

    def _boxed(self) -> list[str]:
        bwrap = _find("bwrap")
        assert bwrap is not None
        return [*_box(bwrap), "--bind", str(self.folder), INSIDE, "--chdir", INSIDE]


def _find(program: str) -> str | None:
    """The program's path; system folders count also where PATH lacks them, as it does for plain users."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"]))


def _box(bwrap: str) -> list[str]:
    """The command line of a box: own user, network, process and ipc namespaces, a read-only system, an empty environment."""
    view = ["--ro-bind", "/usr", "/usr", "--dev", "/dev", "--tmpfs", "/tmp"]
    for folder in ("/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"):
        view += ["--ro-bind-try", folder, folder]
    # MariaDB refuses to run as root; inside its own user namespace the caller is this uid.
    identity = ["--unshare-all", "--unshare-user", "--uid", "999", "--gid", "999", "--cap-drop", "ALL"]
    environment = ["--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--setenv", "HOME", "/tmp"]
    return [bwrap, *identity, *view, *environment, "--die-with-parent", "--new-session"]
