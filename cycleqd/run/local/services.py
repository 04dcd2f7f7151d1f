"""The services of an evolution on one machine: SeaweedFS for S3 and an MLflow server on SQLite, kept in one folder.

Every command that needs them holds a shared lock while it runs. The first one starts what is not running, later ones
attach, and the last one to leave stops them, whoever started them. So a killed command leaves services that the next
one takes over: it knows them by their command lines, however little the killed one wrote down. Data stays in the
folder; ports are free ones, kept from one start to the next where they stay free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.run.local.processes import answers, end_session, free, free_ports, program, session_of
from cycleqd.search.place import Place

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

START_SECONDS = 120
# Until a server is killed. SeaweedFS closes its volumes at once and would then idle for 15 s; nothing is being written,
# and the kernel has what was acknowledged.
STOP_SECONDS = {"s3": 0.2, "mlflow": 1.0}
_PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "mlflow")


@dataclass(frozen=True)
class Service:
    """A server process: how it is started, and the address that answers once it is ready."""

    name: str
    command: tuple[str, ...]
    health: str
    environment: Mapping[str, str]


class Services:
    """The embedded services of one folder. Use `running`."""

    def __init__(self, folder: Path) -> None:
        self.folder = writable(folder.resolve() / "services")
        self.ports = self._ports()
        self.credentials = self._credentials()

    def environment(self) -> dict[str, str]:
        """What stages and clients need to reach the services."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": self.credentials["access"],
            "AWS_SECRET_ACCESS_KEY": self.credentials["secret"],
            "AWS_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
        }

    def start(self, tracking: bool) -> None:
        """Start what is not running. MLflow, which is slow to start, begins first; wait for it with `wait`.

        Args:
            tracking: MLflow is needed, too.
        """
        wanted = [self._mlflow(), self._s3()] if tracking else [self._s3()]
        with self._lock("start"):
            for service in wanted:
                if self._stopping(service.name).exists():
                    self._stop(service.name)  # a killed command was ending it: it answers, but not for long
                if not self._alive(service.name):
                    self._spawn(service)

    def wait(self, tracking: bool) -> None:
        """Wait until the services answer.

        Args:
            tracking: MLflow is needed, too.

        Raises:
            UnavailableError: One does not: its log is named.
        """
        for service in [self._s3(), self._mlflow()] if tracking else [self._s3()]:
            deadline = time.monotonic() + START_SECONDS
            while not answers(service.health):
                if not self._alive(service.name) or time.monotonic() > deadline:
                    log = self.folder / f"{service.name}.log"
                    raise UnavailableError(f"the embedded {service.name} server did not start; its log is {log}")
                time.sleep(0.05)

    def client(self) -> S3Client:
        """A client of the S3 server, without retries. Making one takes a while: do it while the server starts."""
        import boto3
        from botocore.config import Config

        reach = self.environment()
        return boto3.client(
            "s3",
            endpoint_url=reach["AWS_ENDPOINT_URL"],
            region_name=reach["AWS_REGION"],
            aws_access_key_id=reach["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=reach["AWS_SECRET_ACCESS_KEY"],
            # A request that comes before the volumes hangs for 13 s, a later one does not; boto3 would pause before it.
            config=Config(read_timeout=2, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self, client: S3Client, name: str) -> None:
        """Create the bucket unless it exists, and wait until objects can be written and read.

        SeaweedFS reports that it is healthy some seconds before its volumes are; until then it answers 500.

        Args:
            client: From `client`.
            name: The bucket's.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        key, deadline = "cycleqd-ready", time.monotonic() + START_SECONDS
        while True:
            try:
                if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key=key, Body=b"ready")
                client.get_object(Bucket=name, Key=key)["Body"].read()
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"the embedded S3 server does not take objects ({error}); its log is {self.folder / 's3.log'}"
                    ) from error
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop both, politely first."""
        for name in ("mlflow", "s3"):
            self._stop(name)

    def _stop(self, name: str) -> None:
        if pid := self._alive(name):
            self._stopping(name).touch()
            end_session(pid, STOP_SECONDS[name])
        self._stopping(name).unlink(missing_ok=True)

    def _stopping(self, name: str) -> Path:
        """The file that says, while it exists, that the service is being stopped."""
        return self.folder / f"{name}.stopping"

    def _data(self, name: str) -> str:
        """The argument that names the service's data, by which its process is known."""
        return {
            "s3": f"-dir={self.folder / 's3'}",
            "mlflow": f"sqlite:///{self.folder / 'mlflow' / 'mlflow.db'}",
        }[name]

    def _s3(self) -> Service:
        port = self.ports
        return Service(
            "s3",
            (
                program("weed"),
                "server",
                "-s3",
                self._data("s3"),
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-s3.config={self.folder / 's3.json'}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=1024",
                "-master.peers=none",  # no election, which takes a second and sometimes several
                # A bucket takes seven volumes, empty ones: as many as a small disk could hold full would run out.
                "-volume.max=10000",
                "-volume.index=leveldb",
                "-volume.preStopSeconds=0",
                f"-filer.localSocket={self.folder / 'filer.sock'}",
                *(f"-{name}.port={port[name]}" for name in ("master", "volume", "filer", "s3")),
                *(f"-{name}.port.grpc={port[name + '.grpc']}" for name in ("master", "volume", "filer", "s3")),
            ),
            f"http://127.0.0.1:{port['s3']}/healthz",
            {},
        )

    def _mlflow(self) -> Service:
        home, port = self.folder / "mlflow", self.ports["mlflow"]
        return Service(
            "mlflow",
            (
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", self._data("mlflow")),
                *("--artifacts-destination", str(home / "artifacts")),
            ),
            f"http://127.0.0.1:{port}/health",
            {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )

    def _spawn(self, service: Service) -> None:
        """Start in a session of its own, so that a Ctrl-C meant for the command does not reach it."""
        (self.folder / service.name).mkdir(exist_ok=True)
        with (self.folder / f"{service.name}.log").open("ab") as log:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **service.environment},
            )
        while process.poll() is None and not self._alive(service.name):
            time.sleep(0.01)  # the kernel is still loading it: its command line comes last

    def _alive(self, name: str) -> int:
        """The process id of the service, 0 when it does not run: who leads a session and has its data for an argument.

        Nothing is written down: a command killed between the start and the note would leave a server unknown to all.
        """
        data = os.fsencode(self._data(name))
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                pid = int(entry.name)
                if data in (entry / "cmdline").read_bytes().split(b"\0") and session_of(pid) == pid:
                    return pid
        return 0

    def _ports(self) -> dict[str, int]:
        path = self.folder / "ports.json"
        with self._lock("start"):
            ports = json.loads(path.read_text()) if path.exists() else {}
            running = any(self._alive(name) for name in ("s3", "mlflow"))
            if set(ports) != set(_PORTS) or not (running or all(map(free, ports.values()))):
                ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
                _write_private(path, ports)
        return ports

    def _credentials(self) -> dict[str, str]:
        """A key pair of this folder's own, readable by its owner only, made at the first start."""
        path, config = self.folder / "credentials.json", self.folder / "s3.json"
        with self._lock("start"):
            if not path.exists():
                pair = {"access": f"cycleqd{secrets.token_hex(6)}", "secret": secrets.token_hex(24)}
                keys = [{"accessKey": pair["access"], "secretKey": pair["secret"]}]
                identity = {"name": "cycleqd", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]}
                _write_private(config, {"identities": [identity]})
                _write_private(path, pair)
        found: dict[str, str] = json.loads(path.read_text())
        return found

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / f"{name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def running(place: Place, tracking: bool = True) -> Iterator[dict[str, str]]:
    """The environment in which stages and clients reach S3 and MLflow, as long as the context lasts.

    Embedded services are started when they do not run and stopped by the last command that uses them; external services
    are the environment's own.

    Args:
        place: Its services, folder and bucket.
        tracking: Whether MLflow is needed.

    Raises:
        UnavailableError: An embedded service does not start.
    """
    folder = Path(place.folder).resolve()
    common = {"CYCLEQD_BUCKET": place.bucket}
    if place.services == "external":
        yield common
        return
    services = Services(folder)
    (folder / "cache").mkdir(exist_ok=True)
    with (services.folder / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            services.start(tracking)
            client = services.client()
            services.wait(tracking)
            services.make_bucket(client, place.bucket)
            yield {**common, "CYCLEQD_CACHE": str(folder / "cache"), **services.environment()}
        finally:
            with contextlib.suppress(BlockingIOError):  # another command still uses them
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                services.stop()


def writable(folder: Path) -> Path:
    """The folder.

    Args:
        folder: Made if need be.

    Raises:
        InvalidInputError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be made ({error.strerror}); set place.folder to another") from error
    if not os.access(folder, os.W_OK):
        raise InvalidInputError(f"{folder} cannot be written by this user; set place.folder to another")
    return folder


def _write_private(path: Path, value: object) -> None:
    """Write JSON that its owner only can read. A killed command leaves the whole file or none."""
    hidden = path.with_suffix(".new")
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        json.dump(value, handle)
    hidden.replace(path)
