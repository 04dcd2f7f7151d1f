"""Hostile SQL. Every attack runs as a model's statement and must have no effect outside its own sample.

One server, three samples: the attacker's, a victim's, and one whose name the attacker's would match as a pattern.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cycleqd.evaluation.benchmarks.db.mariadb.answers import Answer
from cycleqd.evaluation.benchmarks.db.mariadb.box import missing
from cycleqd.evaluation.benchmarks.db.mariadb.database import Database, Databases
from cycleqd.evaluation.benchmarks.db.mariadb.guard import StatementLimits
from cycleqd.evaluation.benchmarks.db.mariadb.server import MariaDB
from cycleqd.evaluation.benchmarks.db.task import DbEpisode, DbTask, table_md5
from cycleqd.evaluation.task import Outcome, Sample, Workspace

ROWS = [["x", "1"], ["y", "2"]]
LIMITS = StatementLimits(seconds=1.0, memory=64 << 20, disk=24 << 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    if lacks := missing():
        pytest.skip(lacks[0])
    with MariaDB(tmp_path_factory.mktemp("attacks")) as running:
        yield running


@pytest.fixture(scope="module")
def databases(server: MariaDB) -> Iterator[Databases]:
    with Databases(server, LIMITS) as made:
        yield made


class Scene:
    """The three samples, and what an honest observer sees of the server."""

    def __init__(self, databases: Databases) -> None:
        self.server = databases.server
        self.attacker = databases.open("my_db", "boats", ["a", "b"], ROWS)
        self.victim = databases.open("victim", "t", ["a", "b"], ROWS)
        self.lookalike = databases.open("myXdb", "t", ["a", "b"], ROWS)

    def ask(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        with self.server.admin() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return tuple(cursor.fetchall())

    def observed(self) -> dict[str, object]:
        """Everything an attack may not change."""
        variables = {name: value for name, value in self.ask("SHOW GLOBAL VARIABLES") if name not in MOVING}
        files = {path.relative_to(self.server.folder) for path in self.server.folder.rglob("*")}
        own = self.attacker.folder.relative_to(self.server.folder)
        return {
            "users": self.ask("SELECT User, Host FROM mysql.global_priv ORDER BY 1, 2"),
            "grants": self.ask("SELECT * FROM mysql.db ORDER BY Db, User"),
            "root": self.ask("SELECT * FROM mysql.global_priv WHERE User = 'root'"),
            "plugins": self.ask("SELECT * FROM mysql.plugin") + self.ask("SELECT * FROM mysql.func"),
            "routines": self.ask("SELECT db, name FROM mysql.proc WHERE db <> 'sys'")
            + self.ask("SELECT * FROM mysql.event")
            + self.ask("SELECT * FROM mysql.servers"),
            "databases": tuple(row for row in self.ask("SHOW DATABASES") if row[0] != "my_db"),
            "triggers": self.ask("SELECT * FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA <> 'sys'"),
            "variables": variables,
            "files": sorted(str(path) for path in files if own not in path.parents and path != own),
            "victim": self.victim.execute("SELECT * FROM t").rows,
            "lookalike": self.lookalike.execute("SELECT * FROM t").rows,
            "sessions": self.sessions(),
        }

    def sessions(self) -> tuple[tuple[Any, ...], ...]:
        """Sessions of samples; a killed one may take a moment to notice."""
        for _ in range(50):
            left = self.ask("SELECT USER FROM information_schema.PROCESSLIST WHERE USER NOT IN ('root', 'system user')")
            if not left:
                break
            time.sleep(0.1)
        return left

    def close(self) -> None:
        for database in (self.attacker, self.victim, self.lookalike):
            database.drop()


MOVING = {"gtid_binlog_pos", "timestamp"}


@pytest.fixture
def scene(databases: Databases) -> Iterator[Scene]:
    made = Scene(databases)
    yield made
    made.close()


REFUSED = [
    # files
    "SELECT 1 INTO OUTFILE '/data/none/x'",
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 INTO DUMPFILE '/data/db/my_db/x'",
    "LOAD DATA INFILE '/data/log.err' INTO TABLE boats",
    "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE boats",
    "LOAD XML LOCAL INFILE '/etc/passwd' INTO TABLE boats",
    # accounts
    "CREATE USER x@localhost",
    "CREATE USER x@localhost IDENTIFIED VIA unix_socket",
    "ALTER USER root@localhost IDENTIFIED BY ''",
    "ALTER USER CURRENT_USER() IDENTIFIED BY ''",
    "ALTER USER CURRENT_USER() WITH MAX_STATEMENT_TIME 0",
    "SET PASSWORD FOR root@localhost = PASSWORD('')",
    "DROP USER root@localhost",
    "RENAME USER root@localhost TO toor@localhost",
    "GRANT ALL ON *.* TO CURRENT_USER",
    "GRANT ALL ON my_db.* TO CURRENT_USER",
    "GRANT SELECT ON victim.* TO CURRENT_USER",
    "CREATE ROLE r",
    "SET ROLE r",
    "UPDATE mysql.global_priv SET Priv = '{\"access\": 18446744073709551615}'",
    "INSERT INTO mysql.db SELECT * FROM mysql.db",
    "SELECT * FROM mysql.global_priv",
    "SELECT * FROM mysql.user",
    # other samples' databases
    "SELECT * FROM victim.t",
    "SELECT * FROM myXdb.t",
    "INSERT INTO victim.t VALUES (1, 2)",
    "DELETE FROM myXdb.t",
    "UPDATE boats, victim.t SET victim.t.a = 'q'",
    "DROP TABLE victim.t",
    "DROP DATABASE victim",
    "DROP DATABASE myXdb",
    "ALTER DATABASE victim CHARACTER SET latin1",
    "CREATE DATABASE mine",
    "CREATE TABLE victim.u (a INT)",
    "CREATE TABLE copy AS SELECT * FROM victim.t",
    "RENAME TABLE boats TO victim.boats",
    "RENAME TABLE victim.t TO my_db.t",
    "CREATE TABLE link LIKE victim.t",
    "USE victim",
    "SHOW TABLES FROM victim",
    "DESCRIBE victim.t",
    "HANDLER victim.t OPEN",
    "CREATE TABLE f (a TEXT, FOREIGN KEY (a) REFERENCES victim.t (a))",
    # the server
    "SHUTDOWN",
    "KILL 1",
    "SET GLOBAL max_connections = 1",
    "SET GLOBAL sql_mode = 'ANSI_QUOTES'",
    "SET GLOBAL max_statement_time = 0",
    "SET GLOBAL general_log_file = '/data/db/my_db/x.php'",
    "SET GLOBAL read_only = 1",
    "SET SESSION sql_log_bin = 0",
    "SET SESSION enforce_storage_engine = NULL",
    "FLUSH TABLES WITH READ LOCK",
    "FLUSH PRIVILEGES",
    "FLUSH LOGS",
    "FLUSH HOSTS",
    "RESET MASTER",
    "BACKUP STAGE START",
    "BACKUP LOCK boats",
    "LOCK TABLES boats WRITE",
    "CHANGE MASTER TO MASTER_HOST = '1.2.3.4'",
    "START SLAVE",
    "PURGE BINARY LOGS BEFORE NOW()",
    "SHOW ENGINE INNODB STATUS",
    "SELECT * FROM information_schema.INNODB_TRX",
    "SELECT * FROM information_schema.INNODB_SYS_TABLES",
    # code that stays
    "CREATE PROCEDURE p() DROP TABLE boats",
    "CREATE FUNCTION f() RETURNS INT RETURN 1",
    "CREATE FUNCTION sys_exec RETURNS INTEGER SONAME 'lib_mysqludf_sys.so'",
    "CREATE AGGREGATE FUNCTION x RETURNS STRING SONAME 'libc.so.6'",
    "INSTALL SONAME 'ha_connect'",
    "INSTALL PLUGIN x SONAME 'auth_pam.so'",
    "UNINSTALL SONAME 'ha_innodb'",
    "CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO DELETE FROM boats",
    "CREATE TRIGGER g BEFORE INSERT ON boats FOR EACH ROW SET NEW.a = 1",
    "CREATE VIEW v AS SELECT * FROM victim.t",
    "CREATE SQL SECURITY DEFINER VIEW v AS SELECT 1",
    "CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (HOST '1.2.3.4')",
    "CALL sys.execute_prepared_stmt('DROP DATABASE victim')",
    # several statements, and statements in disguise
    "SELECT 1; DROP DATABASE victim",
    "SELECT 1; SELECT * FROM victim.t",
    "PREPARE p FROM 'DROP DATABASE victim; SELECT 1'",
    "EXECUTE IMMEDIATE 'DROP DATABASE victim'",
    "EXECUTE IMMEDIATE CONCAT('SHUT', 'DOWN')",
    "BEGIN NOT ATOMIC SET GLOBAL max_connections = 1; END",
    "/*M! DROP DATABASE victim */",
    "/*!50000 GRANT ALL ON *.* TO CURRENT_USER */",
    "BINLOG 'xxxx'",
]


def test_refused_statements_change_nothing(scene: Scene) -> None:
    before = scene.observed()
    for statement in REFUSED:
        answer = scene.attacker.execute(statement)
        assert answer.error and not answer.rows, statement
        assert not answer.exceeded, statement
        assert "secret" not in answer.error
    assert scene.observed() == before
    assert scene.attacker.execute("SELECT * FROM boats").rows == tuple(tuple(row) for row in ROWS)


HARMLESS = [
    "SELECT LOAD_FILE('/data/log.err')",
    "SELECT LOAD_FILE('/etc/passwd')",
    "SELECT LOAD_FILE(CONCAT('/data/db/', 'victim/t.ibd'))",
    "SET PASSWORD = PASSWORD('locked out')",
    "SET PASSWORD = 'not even a hash'",
    "SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES'",
    "SET SESSION max_statement_time = 0",
    "SET SESSION sql_select_limit = 0",
    "SET NAMES latin1",
    "SET SESSION autocommit = 0",
    "SET SESSION TRANSACTION READ ONLY",
    "SET DEFAULT ROLE NONE",
    "START TRANSACTION",
    "PREPARE p FROM 'SELECT * FROM boats'",
    "HANDLER boats OPEN AS h",
    "SELECT GET_LOCK('everything', 60)",
    "CREATE TEMPORARY TABLE boats (a INT)",
    "BEGIN NOT ATOMIC START TRANSACTION; DELETE FROM boats; END",
    "KILL CONNECTION_ID()",
    "KILL USER CURRENT_USER",
    "KILL USER root",
    "DO RELEASE_ALL_LOCKS()",
    "XA RECOVER",
]


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_is_allowed_stays_within_its_session(scene: Scene, statement: str) -> None:
    before = scene.observed()
    answer = scene.attacker.execute(statement)
    assert all(cell in (None, 0, 1) for row in answer.rows for cell in row)
    assert not answer.exceeded
    after = scene.attacker.execute("SELECT a, 'é', @@sql_mode, @@autocommit, @@tx_read_only FROM boats")
    assert after.rows == (("x", "é", "", 1, 0), ("y", "é", "", 1, 0))
    now = scene.observed()
    assert {name: now[name] for name in now if name != "users"} == {
        name: before[name] for name in before if name != "users"
    }
    assert now["users"] == before["users"]


def test_nothing_tells_of_other_samples(scene: Scene) -> None:
    for statement in (
        "SHOW DATABASES",
        "SELECT * FROM information_schema.SCHEMATA",
        "SELECT * FROM information_schema.TABLES",
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA LIKE 'v%'",
        "SELECT * FROM information_schema.STATISTICS",
        "SELECT * FROM information_schema.USER_PRIVILEGES",
        "SELECT * FROM information_schema.SCHEMA_PRIVILEGES",
        "SELECT * FROM information_schema.PROCESSLIST",
        "SHOW FULL PROCESSLIST",
        "SHOW OPEN TABLES",
        "SHOW GRANTS",
        "SHOW GLOBAL STATUS",
        "SHOW GLOBAL VARIABLES",
    ):
        text = str(scene.attacker.execute(statement).rows)
        for name in ("victim", "myXdb", scene.victim.account, scene.lookalike.account, str(os.uname().nodename)):
            assert f"'{name}'" not in text, (statement, name)
    for existing, absent in (("victim", "nobody"), ("myXdb", "noXdb")):
        texts = [
            scene.attacker.execute(f"SELECT * FROM {name}.t").text.replace(name, "?") for name in (existing, absent)
        ]
        assert texts[0] == texts[1]


SLOW = [
    "SELECT SLEEP(600)",
    "SET STATEMENT max_statement_time = 0 FOR SELECT SLEEP(600)",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; SELECT SLEEP(600); END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; LOOP DO SLEEP(1); END LOOP; END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; SELECT BENCHMARK(1000000000000, SHA2('a', 512)); END",
    "SELECT COUNT(*) FROM information_schema.COLUMNS a, information_schema.COLUMNS b, information_schema.COLUMNS c",
    "SELECT COUNT(DISTINCT MD5(x.seq)) FROM seq_1_to_100000 x, seq_1_to_100000 y",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n % 9 + 1 FROM r) SELECT COUNT(*) FROM r",
    "SELECT REPEAT('a', 200000) RLIKE '(a*)*(a*)*(a*)*b' FROM seq_1_to_100000",
]


@pytest.mark.parametrize("statement", SLOW)
def test_slow_statements_end_in_time(scene: Scene, statement: str) -> None:
    scene.attacker.execute("SET max_recursive_iterations = 4294967295")
    before, generation = scene.observed(), scene.server.generation
    answer = scene.attacker.execute(statement)
    assert answer.exceeded == "time" or answer.error or answer.rows  # some are refused or cut by the server's limits
    assert scene.server.generation == generation
    assert scene.observed() == before


@pytest.mark.parametrize("statement", SLOW[:3])
def test_time_outs_are_time_outs(scene: Scene, statement: str) -> None:
    assert scene.attacker.execute(statement).exceeded == "time"


FILLING = [
    "BEGIN NOT ATOMIC SET max_statement_time = 0; CREATE TABLE big (a LONGTEXT);"
    " LOOP INSERT INTO big VALUES (REPEAT('a', 1000000)); END LOOP; END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; CREATE TABLE big (a TEXT); INSERT big VALUES (REPEAT('a', 9999));"
    " LOOP INSERT INTO big SELECT * FROM big; END LOOP; END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; SET max_session_mem_used = 8000000000;"
    " SET max_heap_table_size = 8000000000; SET tmp_memory_table_size = 8000000000; SET tmp_disk_table_size = 1;"
    " SELECT COUNT(*) FROM (SELECT DISTINCT seq, RPAD(seq, 400, 'x') FROM seq_1_to_50000000) q; END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0; SET tmp_disk_table_size = 80000000000;"
    " SELECT COUNT(*) FROM (SELECT DISTINCT seq, REPEAT(MD5(seq), 500) FROM seq_1_to_50000000) q; END",
    "BEGIN NOT ATOMIC SET max_statement_time = 0;"
    " SELECT * FROM (SELECT REPEAT(MD5(seq), 300) r FROM seq_1_to_50000000) t ORDER BY r LIMIT 100000, 1; END",
    "BEGIN NOT ATOMIC SET max_session_mem_used = 8000000000; SET group_concat_max_len = 4294967295;"
    " SELECT GROUP_CONCAT(REPEAT(MD5(seq), 1000)) FROM seq_1_to_10000000; END",
    "SELECT REPEAT('a', 4000000), REPEAT('b', 4000000), REPEAT('c', 4000000) FROM seq_1_to_1000000",
    "SELECT seq FROM seq_1_to_100000000",
]


@pytest.mark.parametrize("statement", FILLING)
def test_memory_and_disk_are_bounded(scene: Scene, statement: str) -> None:
    before = scene.observed()
    peak = _Peak(scene.server.folder)
    with peak:
        answer = scene.attacker.execute(statement)
    assert answer.exceeded or answer.error or len(answer.text) < 20 << 20
    assert peak.disk < 200 << 20
    assert peak.memory < 700 << 20
    scene.attacker.execute("DROP TABLE IF EXISTS big")
    assert scene.observed() == before


class _Peak:
    """The most disk that the server's folder, and resident memory that the server, took meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.disk = self.memory = 0

    def __enter__(self) -> None:
        self._start = self._disk()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        mine = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if _is_server(path, self._folder)]
        while not self._over.wait(0.05):
            self.disk = max(self.disk, self._disk() - self._start)
            for process in mine:
                self.memory = max(
                    self.memory, int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                )

    def _disk(self) -> int:
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total


def _is_server(cmdline: Path, folder: Path) -> bool:
    try:
        words = cmdline.read_bytes().split(b"\0")
        inside = (cmdline.parent / "root/data/socket").stat() if words[0] == b"mariadbd" else None
    except OSError:
        return False
    return inside is not None and inside.st_ino == (folder / "socket").stat().st_ino


def test_others_are_served_while_one_attacks(scene: Scene) -> None:
    with ThreadPoolExecutor(2) as pool:
        began, attack = time.monotonic(), pool.submit(scene.attacker.execute, SLOW[4])
        time.sleep(0.3)
        waited = time.monotonic() - began
        assert scene.victim.execute("SELECT COUNT(*) FROM t").rows == ((2,),)
        if waited < LIMITS.seconds / 2:  # else a busy machine came late, and the attack's second run is alone
            assert not attack.done()
        assert attack.result().exceeded == "time"


def test_nothing_runs_on_after_the_sample(databases: Databases) -> None:
    database = databases.open("running", "t", ["a"], [["1"]])
    connection = databases.server.connect(database.account, database.password)
    connection.query("SET max_statement_time = 0")
    runner = threading.Thread(target=_until_killed, args=(connection,))
    runner.start()
    time.sleep(0.3)
    database.drop()
    runner.join(10)
    assert not runner.is_alive()
    with databases.server.admin() as admin, admin.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER LIKE 'u%'")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT COUNT(*) FROM mysql.global_priv WHERE User LIKE 'u%'")
        assert cursor.fetchone() == (0,)


def _until_killed(connection: Any) -> None:
    import pymysql

    with pytest.raises(pymysql.MySQLError):
        connection.query("SELECT BENCHMARK(1000000000000, MD5('a')) FROM information_schema.SCHEMATA")
        connection.query("SELECT 1")


def test_prepared_transactions_do_not_outlive_the_sample(databases: Databases) -> None:
    for _ in range(2):
        database = databases.open("prepared", "t", ["a"], [["1"]])
        attack = "BEGIN NOT ATOMIC XA START 'x\\'y'; UPDATE t SET a = 2; XA END 'x\\'y'; XA PREPARE 'x\\'y'; END"
        assert not database.execute(attack).error
        assert database.execute("DROP TABLE t").exceeded == "time"
        database.drop()
        assert not database.folder.exists()


def test_a_statement_that_cannot_be_stopped_does_not_stop_the_others(tmp_path: Path) -> None:
    """One call of REGEXP_REPLACE takes seconds on a long string and ignores being killed meanwhile."""
    if lacks := missing():
        pytest.skip(lacks[0])
    call = "REPEAT('ab', 131000)"
    for _ in range(8):
        call = f"REGEXP_REPLACE({call}, 'a|b', '\\\\0')"
    with MariaDB(tmp_path) as server, Databases(server, LIMITS) as databases:
        for _ in range(2):
            database = databases.open("endless", "t", ["a"], [["1"]])
            assert database.execute("SELECT a FROM t").rows == (("1",),)
            assert database.execute(f"SELECT LENGTH({call}) FROM t").exceeded == "time"
            database.drop()
    assert not list(tmp_path.iterdir())


def test_the_same_password_change_twice(scene: Scene) -> None:
    for _ in range(2):
        assert not scene.attacker.execute("SET PASSWORD = PASSWORD('mine')").error
    assert scene.attacker.execute("SELECT 1") == Answer(rows=((1,),))


def test_files_stay_in_the_samples_own_folder(scene: Scene) -> None:
    before = scene.observed()["files"]
    for number, place in enumerate(("/tmp", "/data/none", "/data/db/victim", "/spill")):
        scene.attacker.execute(
            f"CREATE TABLE away{number} (a INT) DATA DIRECTORY = '{place}' INDEX DIRECTORY = '{place}'"
        )
    scene.attacker.execute("CREATE TABLE `../victim/t2` (a INT)")
    scene.attacker.execute("CREATE TABLE heap (a INT) ENGINE=MEMORY")
    scene.attacker.execute("CREATE TABLE far (a INT) ENGINE=CONNECT CONNECTION='mysql://root@localhost/victim/t'")
    scene.attacker.execute("CREATE TABLE csv (a INT NOT NULL) ENGINE=CSV")
    assert scene.observed()["files"] == before
    engines = scene.attacker.execute(
        "SELECT DISTINCT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()"
    )
    assert engines.rows == (("InnoDB",),)


GOLD = {
    "description": "Set b to 3.",
    "add_description": "",
    "type": ["UPDATE"],
    "label": ["UPDATE boats SET b = '3'"],
    "answer_md5": table_md5([["x", "3"], ["y", "3"]]),
    "table": {"table_name": "boats", "table_info": {"columns": [{"name": "a"}, {"name": "b"}], "rows": ROWS}},
    "database": "judged",
}
CHEATS = [
    ["SET SESSION sql_mode = 'PIPES_AS_CONCAT'"],
    ["DROP DATABASE judged"],
    ["DROP TABLE boats"],
    ["RENAME TABLE boats TO other"],
    ["ALTER TABLE boats DROP COLUMN b"],
    ["CREATE FUNCTION md5(a TEXT) RETURNS TEXT RETURN 'x'"],
    ["CREATE OR REPLACE VIEW boats AS SELECT 'x', '3'"],
    ["SET PASSWORD = PASSWORD('no judge')"],
    ["SET PASSWORD = PASSWORD('no judge')", "KILL USER CURRENT_USER"],
    ["BEGIN NOT ATOMIC SET group_concat_max_len = 4; SET sql_select_limit = 0; END"],
    ["CREATE TEMPORARY TABLE boats AS SELECT 'x' AS a, '3' AS b"],
    ["BEGIN NOT ATOMIC XA START 'j'; UPDATE boats SET b = '3'; XA END 'j'; XA PREPARE 'j'; END"],
    ["ALTER TABLE boats MODIFY b TEXT GENERATED ALWAYS AS (SLEEP(100)) VIRTUAL"],
    ["ALTER TABLE boats ADD COLUMN c TEXT DEFAULT 'q'"],
    ["DELETE FROM boats"],
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbTask]:
    if lacks := missing():
        pytest.skip(lacks[0])
    with DbTask({"seconds": 1}, Workspace(tmp_path_factory.mktemp("judge"))) as running:
        yield running


@pytest.mark.parametrize("statements", CHEATS, ids=lambda statements: statements[0][:40])
def test_the_judge_is_not_deceived(task: DbTask, statements: list[str]) -> None:
    sample = Sample("0", GOLD, "UPDATE")
    episode = task.start(sample)
    try:
        for statement in statements:
            episode.next(f"Action: Operation\n```sql\n{statement}\n```")
        episode.next("Action: Answer\nFinal Answer: done")
        assert not task.verdict(episode).passed
    finally:
        episode.close()
    assert _honest(task, sample) is Outcome.PASSED  # and the next sample of that name is as good as new


def _honest(task: DbTask, sample: Sample) -> Outcome:
    episode: DbEpisode = task.start(sample)
    try:
        episode.next("Action: Operation\n```sql\nUPDATE boats SET b = 3\n```")
        episode.next("Action: Answer\nFinal Answer: done")
        return task.verdict(episode).outcome
    finally:
        episode.close()


def test_the_gold_answer_is_not_on_the_server(task: DbTask) -> None:
    question = {"type": ["other"], "label": ["the-secret-label"], "sql": {"query": "the-secret-query"}}
    episode = task.start(Sample("0", GOLD | question, "SELECT"))
    try:
        database: Database = episode.database
        dump = [database.execute(f"SELECT * FROM information_schema.{name}").rows for name in ("COLUMNS", "TABLES")]
        assert "the-secret" not in str(dump) and str(GOLD["answer_md5"])[3:35] not in str(dump)
    finally:
        episode.close()
    stored = [path.read_bytes() for path in task.server.folder.rglob("*") if path.is_file()]
    assert not any(b"the-secret" in content for content in stored)


def test_the_server_is_as_it_was(server: MariaDB) -> None:
    """Last in this file: after all attacks nothing is left, and the server still answers."""
    assert server.alive
    with server.admin() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW DATABASES")
        assert {name for (name,) in cursor.fetchall()} == {"information_schema", "mysql", "performance_schema", "sys"}
        cursor.execute("SELECT User FROM mysql.global_priv")
        assert {name for (name,) in cursor.fetchall()} == {"root", "mariadb.sys"}
        cursor.execute("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER NOT IN ('root', 'system user')")
        assert cursor.fetchone() == (0,)
    assert not list((server.folder / "none").iterdir())
