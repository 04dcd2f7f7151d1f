"""A private MariaDB server for hostile SQL: started for one stage, gone with it.

    with MariaDB(scratch) as server:
        with server.admin() as connection: ...

No TCP, a socket in a folder that only this user may enter, a random administrator's password, and the server process
itself in bubblewrap: no network, a read-only system, nothing writable but its own data. `database.py` adds the
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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.benchmarks.db.mariadb.box import INSIDE, TEMPORARY, box, missing
from cycleqd.evaluation.sandbox import descendants

if TYPE_CHECKING:
    from pymysql.connections import Connection

KEEPER = Path(__file__).with_name("keeper.py")
START_SECONDS = 60.0

# Small logs and no flushing: the data need not survive anything, and a smaller set of files is made and removed sooner.
STORAGE = (
    "--innodb-log-file-size=4M",
    "--aria-log-file-size=8M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-innodb-doublewrite",
    "--debug-no-sync",
    "--skip-sync-frm",
    "--innodb-fast-shutdown=3",
    "--innodb-buffer-pool-load-at-startup=0",
    "--innodb-buffer-pool-dump-at-shutdown=0",
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=1M",
)
# What a statement may take by default. A session can raise most of these for itself, but not what the guard (guard.py)
# allows.
LIMITS = (
    "--max-connections=200",
    "--max-allowed-packet=256K",  # bounds every string, and so the string functions that cannot be interrupted
    "--max-heap-table-size=4M",
    "--tmp-memory-table-size=4M",
    "--tmp-disk-table-size=64M",
    "--max-session-mem-used=256M",
    "--innodb-temp-data-file-path=ibtmp1:12M:autoextend:max:256M",
)
# The benchmark's verdicts need an empty `sql_mode`, and the collation is the nearest to MySQL 8's default.
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
    "--log-warnings=1",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_uca1400_nopad_ai_ci",
)


class MariaDB:
    """The server, as a context manager. Its folder under `scratch` is removed on leaving and when this process dies.

    After entering, `folder` holds the data and `start_seconds` how long creating and starting took; `generation` counts
    the starts. Raises UnavailableError if a program is missing or the server does not start.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._password = secrets.token_hex(16)
        self.generation = 0

    def __enter__(self) -> Self:
        if lacks := missing():
            raise UnavailableError(lacks[0])
        self._start()
        return self

    def restart(self) -> None:
        """End the server with all that it holds, and start a new one.

        Raises:
            UnavailableError: It does not start.
        """
        self._stop()
        self._start()

    def _start(self) -> None:
        started = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir=self._scratch))
        # A socket's path may have 108 bytes only; through the descriptor of its folder it is always short.
        self._folder_fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self._create()
            self._keeper = self._launch()
            self._await_ready()
            (self.folder / "init.sql").unlink()
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - started
        self.generation += 1

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def alive(self) -> bool:
        """Whether the server process still runs."""
        return self._keeper.poll() is None

    def answers(self) -> bool:
        """Whether the server can still be used."""
        import pymysql

        try:
            self.admin().close()
        except pymysql.MySQLError:
            return False
        return True

    def waited(self, task: int | None) -> float:
        """Seconds for which a thread of the server has waited for a processor; 0 where the kernel does not say.

        Args:
            task: The thread's number as the server knows it, which is that in its name space.
        """
        for process in descendants(self._keeper.pid):
            for thread in Path(f"/proc/{process}/task").glob("*"):
                with suppress(OSError, StopIteration, ValueError):
                    lines = (thread / "status").read_text().splitlines()
                    if int(next(line for line in lines if line.startswith("NSpid:")).split()[-1]) == task:
                        return int((thread / "schedstat").read_text().split()[1]) / 1e9
        return 0.0

    def admin(self) -> Connection:
        """A connection with every privilege, for trusted statements only."""
        return self.connect("root", self._password)

    def connect(self, user: str, password: str, read_timeout: float | None = None) -> Connection:
        """A new session, in utf8mb4, with the server's autocommit.

        Args:
            user: Name of an account at localhost.
            password: The account's password.
            read_timeout: Seconds to wait for an answer; None waits without end.
        """
        import pymysql

        return pymysql.connect(
            unix_socket=f"/proc/self/fd/{self._folder_fd}/socket",
            user=user,
            password=password,
            charset="utf8mb4",
            autocommit=None,
            read_timeout=read_timeout,
            local_infile=False,
            ssl_disabled=True,  # a private socket; loading certificates takes 20 ms a connection
        )

    def _create(self) -> None:
        for name in ("db", "none"):
            (self.folder / name).mkdir()
        self._box = box(self.folder)
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={INSIDE}/db", f"--tmpdir={TEMPORARY}", *STORAGE]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--force"]
        command = [*self._box, *install, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            error = (done.stderr or done.stdout)[-500:].strip()
            raise UnavailableError(f"mariadb-install-db failed in {self.folder}: {error}")
        init = self.folder / "init.sql"
        init.write_text(
            "DELETE FROM mysql.proxies_priv;\n"
            "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys' AND (User <> 'root' OR Host <> 'localhost');\n"
            "FLUSH PRIVILEGES;\n"
            f"ALTER USER root@localhost IDENTIFIED BY '{self._password}';\n"
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        paths = [f"--datadir={INSIDE}/db", f"--tmpdir={TEMPORARY}", f"--socket={INSIDE}/socket"]
        files = [f"--init-file={INSIDE}/init.sql", f"--log-error={INSIDE}/log.err", f"--pid-file={INSIDE}/pid"]
        server = [*self._box, "mariadbd", "--no-defaults", *paths, *files, *STORAGE, *LIMITS, *BEHAVIOUR]
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
        self._folder_fd = -1
