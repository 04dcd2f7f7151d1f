"""Running a step on this machine: kfp.local in a fresh process, since it patches print and logging of the one it is in.

The process leads a session of its own. It ends with its driver, however that ends, and takes its tasks along; its
temporary folder is removed by the driver, or by the next driver when that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cycleqd import errors
from cycleqd.errors import CycleQDError, UnavailableError
from cycleqd.run.local.warm import SOCKET, Warm
from cycleqd.run.steps import Step
from cycleqd.search.config import Config, parse

Follow = Callable[[str, str], None]
"""Called with the name of a task and "started", "done" or "failed"."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EVENTS = (
    re.compile(r"INFO - Executing task '(?P<started>[^']+)'"),
    re.compile(r"INFO - Task '(?P<done>[^']+)' finished with status SUCCESS"),
    re.compile(r"Task '(?P<failed>[^']+)' finished with status FAILURE"),
)
_ERROR = re.compile(r"cycleqd\.errors\.(?P<kind>\w+): (?P<sentence>.+)")
_RAISED = re.compile(r"^\s*Traceback \(most recent call last\)", re.MULTILINE)
_STOP_SECONDS = 10
_PR_SET_PDEATHSIG = 1


class LocalRunner:
    """Runs steps by kfp.local: each task a process of this Python, or a container when the place says docker."""

    def __init__(
        self, config: Config, environment: Mapping[str, str], follow: Follow, warm: Warm | None = None
    ) -> None:
        """With `warm`, tasks are forks of that process instead of new ones (not in containers)."""
        self.config = config
        self.environment = environment
        self.follow = follow
        self.warm = warm if config.place.runner == "local" else None
        self.folder = Path(config.place.folder).resolve() / "runs" / config.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: Step) -> Path:
        """The step's log file."""
        return self.folder / f"{step.name}.log"

    def finished(self, step: Step) -> bool:
        """Whether a run of this step on this machine ended well, cleaning and logging included."""
        note = self._note(step)
        return note.exists() and note.read_text() == self._evolution()

    def _note(self, step: Step) -> Path:
        """The file that says of which evolution the step's last run here ended well."""
        return self.folder / f"{step.name}.done"

    def _evolution(self) -> str:
        """What tells evolutions of one name apart: where their objects are, and all that decides their results."""
        endpoint = {**os.environ, **self.environment}.get("AWS_ENDPOINT_URL", "")
        return json.dumps([endpoint, self.config.place.bucket, self.config.frozen()])

    def run(self, step: Step, arguments: Mapping[str, Any]) -> None:
        """Run a step to its end. Raises the error of the stage that failed, or UnavailableError naming the log."""
        job = {
            "config": self.config.model_dump(mode="json", by_alias=True),
            "kind": step.kind,
            "count": step.count,
            "arguments": dict(arguments),
        }
        self._note(step).unlink(missing_ok=True)
        warm = self.warm.ready() if self.warm else {}
        with self._temporary() as temporary, self.log(step).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cycleqd.run.local.runner", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, **self.environment, **warm, "TMPDIR": str(temporary)},
            )
            with _ended(process):
                assert process.stdin is not None and process.stdout is not None  # both are pipes
                process.stdin.write(json.dumps(job))
                process.stdin.close()
                self._listen(process.stdout, log)
                code = process.wait()
        if code or self._failed_unnoticed(step):
            raise self._failure(step)
        self._note(step).write_text(self._evolution())

    def _listen(self, output: IO[str], log: IO[str]) -> None:
        for line in output:
            log.write(line)
            log.flush()
            plain = _ANSI.sub("", line)
            for match in filter(None, (event.search(plain) for event in _EVENTS)):
                for event, task in match.groupdict().items():
                    self.follow(task, event)

    def _failed_unnoticed(self, step: Step) -> bool:
        """Whether a container's stage raised: kfp calls one a success that is gone before its status is read."""
        return self.config.place.runner == "docker" and bool(_RAISED.search(self._text(step)))

    def _text(self, step: Step) -> str:
        return _ANSI.sub("", self.log(step).read_text(errors="replace"))

    def _failure(self, step: Step) -> CycleQDError:
        """The last of our own errors in the log, as the stage raised it."""
        found = list(_ERROR.finditer(self._text(step)))
        kind = getattr(errors, found[-1]["kind"], None) if found else None
        if kind is not None and issubclass(kind, CycleQDError):
            return kind(found[-1]["sentence"].strip())
        return UnavailableError(f"the {step.name} pipeline failed; its log is {self.log(step)}")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A temporary folder with a short path (sockets are made in it), free of what a killed run left."""
        owner = self.folder / "temporary"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(owner.read_text(), ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix="cycleqd-run-"))
        owner.write_text(str(path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            owner.unlink(missing_ok=True)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind: on any way out, end the session that `process` leads."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)


def _die_with(driver: int) -> None:
    """Be told (SIGTERM) when the driver, our parent, dies, and then end the whole session: now, if it is dead."""

    def end(number: int, frame: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != driver:
        end(0, None)


def main() -> None:
    """The process of a step: read the job from standard input, run its pipeline by kfp.local, exit 0 or 1.

    The argument is the driver's process id. It is not asked for here, where a killed driver is no longer the parent.
    """
    _die_with(int(sys.argv[1]))
    job = json.loads(sys.stdin.read())
    import warnings

    warnings.simplefilter("ignore")  # kfp warns of every image that has no "python" in its name
    from kfp import local

    from cycleqd.run.local import warm
    from pipelines.definitions import build

    config = parse(job["config"], "the driver's configuration")
    pipeline = build(config, job["kind"], job["count"])
    local.init(_runner(config), pipeline_root=tempfile.mkdtemp(prefix="root-"))
    if os.environ.get(SOCKET):  # kfp.local puts this into each task's shell command for "python3"
        sys.executable = shlex.join([sys.executable, "-ES", warm.__file__])
    try:
        pipeline(**job["arguments"])
    except RuntimeError as error:  # kfp.local's word for a failed task
        sys.exit(str(error))


def _runner(config: Config) -> Any:
    from kfp import local

    if config.place.runner != "docker":
        return local.SubprocessRunner(use_venv=False)
    from docker.client import DockerClient
    from docker.types import Mount

    passed = {name: os.environ[name] for name in _PASSED if os.environ.get(name)}
    mounts = [Mount(path, path, type="bind", read_only=True) for path in _read_by_seeding(config)]
    with contextlib.closing(DockerClient.from_env()) as client:
        podman = any("Podman" in part["Name"] for part in client.version()["Components"])
    return local.DockerRunner(
        network_mode="host",
        user="0:0",
        environment=passed,
        mounts=mounts,
        # Default profiles refuse what boxes are made of, name spaces or their host names; Docker has no word for /proc.
        security_opt=["seccomp=unconfined", *(["unmask=ALL"] if podman else [])],
    )


_PASSED = (
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "CYCLEQD_BUCKET"),
)


def _read_by_seeding(config: Config) -> list[str]:
    """Absolute paths on this machine that the configuration names."""
    named = [config.models.base, *(expert.path for expert in config.models.experts.values())]
    for task in config.tasks.values():
        named += [task.data, task.class_.rpartition(":")[0]]
    named += [operator.kind.rpartition(":")[0] for operator in config.method.operators.values()]
    return sorted({path for path in named if Path(path).is_absolute()})


if __name__ == "__main__":
    main()
