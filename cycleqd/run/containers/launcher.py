"""Tasks as containers of this machine, one each, by Docker or by what answers as Docker does."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cycleqd.errors import UnavailableError
from cycleqd.run.graph import GraphTask, Launcher
from cycleqd.search.config import Config
from cycleqd.storage.failures import FAILURE

_PASSED = (
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("CYCLEQD_BUCKET", "CYCLEQD_SERVER_KEY"),
)
_LABEL = "cycleqd.runs"


class Containers(Launcher):
    """Docker's daemon, as long as the context lasts. What a killed driver of the same evolution left is removed."""

    def __init__(self, config: Config) -> None:
        self.read = _read_by_seeding(config)
        self.owner = str(Path(config.place.folder).resolve() / "runs" / config.name)
        self._lock, self._ended = threading.Lock(), False

    def __enter__(self) -> Containers:
        """Raises UnavailableError when the daemon does not answer."""
        from docker.client import DockerClient

        with _reported("answer"):
            self.client = DockerClient.from_env()
            parts = self.client.version()["Components"]
        # Default profiles refuse what boxes are made of, name spaces or their host names; Docker has no word for /proc.
        podman = any("Podman" in part["Name"] for part in parts)
        self.security = ["seccomp=unconfined", *(["unmask=ALL"] if podman else [])]
        self._remove()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.client.close()

    def run(
        self, task: GraphTask, arguments: list[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> int:
        """Run a task in a container of its image, which sees `folder` under the same path."""
        with _reported(f"run {task.image}"), log.open("ab") as stream:
            self._fetch(task.image)
            with self._lock:
                if self._ended:
                    return 128
                container = self._start(task, arguments, folder, environment)
            try:
                stream.write(f"container {container.short_id} of image {task.image}\n".encode())
                for piece in container.logs(stream=True, follow=True):
                    stream.write(piece)
                    stream.flush()
                return int(container.wait()["StatusCode"])
            finally:
                with contextlib.suppress(Exception):  # `end` was faster
                    container.remove(force=True)

    def end(self) -> None:
        """End all tasks that run, and begin no more."""
        with self._lock:
            self._ended = True
            self._remove()

    def _start(self, task: GraphTask, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> Any:
        """A container that works on the task."""
        from docker.types import Mount

        known = {**os.environ, **environment}
        shared = Mount(str(folder), str(folder), type="bind")
        container = self.client.containers.create(
            task.image,
            [*task.command, *arguments],
            network_mode="host",
            user="0:0",
            environment={name: known[name] for name in (*_PASSED, FAILURE) if known.get(name)},
            mounts=[shared, *(Mount(path, path, type="bind", read_only=True) for path in self.read)],
            security_opt=self.security,
            labels={_LABEL: self.owner},
        )
        container.start()
        return container

    def _fetch(self, image: str) -> None:
        """Have the image here."""
        from docker.errors import ImageNotFound

        try:
            self.client.images.get(image)
        except ImageNotFound:
            self.client.images.pull(image)

    def _remove(self) -> None:
        for container in self.client.containers.list(all=True, filters={"label": f"{_LABEL}={self.owner}"}):
            with contextlib.suppress(Exception):  # it has just gone by itself
                container.remove(force=True)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn what the daemon says, or that it does not, into a sentence."""
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"Docker does not {what} ({reason}); see that its daemon runs and DOCKER_HOST names it"
        ) from error


def _read_by_seeding(config: Config) -> list[str]:
    """Absolute paths on this machine that the configuration names."""
    named = [config.models.base, *(expert.path for expert in config.models.experts.values())]
    for task in config.tasks.values():
        named += [task.data, task.class_.rpartition(":")[0]]
    named += config.own_files.values()
    return sorted({path for path in named if Path(path).is_absolute()})
