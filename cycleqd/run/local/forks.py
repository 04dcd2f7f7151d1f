"""Tasks as processes of this machine, each a fork of one process that has imported what stages import.

Importing torch, transformers, MLflow and kfp takes seconds, which each task of a small evolution would otherwise spend
again. A fork is as fresh a process as one that was started: nothing was computed before it. It leads a session of its
own under a keeper, which ends it with all its processes when the driver goes away, however that ends.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd.errors import UnavailableError
from cycleqd.run.graph import GraphTask, Launcher

_MODULES = (
    *("kfp.dsl.executor_main", "boto3", "mlflow", "torch", "safetensors", "transformers"),
    *(f"components.{stage}.stage" for stage in ("seed", "select_parents", "merge", "evaluate", "update_archives")),
    *(
        f"transformers.models.{part}"
        for part in ("auto.modeling_auto", "auto.tokenization_auto", "llama.modeling_llama")
    ),
    *("cycleqd.evaluation.engines.transformers", "cycleqd.tracking.unlogged", "cycleqd.weights.merge"),
)
_START_SECONDS = 180
_POLITE_SECONDS = 0.5  # for what cleans up after itself


class Forks(Launcher):
    """The process that imports, as long as the context lasts, and the tasks that are forks of it."""

    def __enter__(self) -> Forks:
        """Start importing; nothing is waited for."""
        self.folder = Path(tempfile.mkdtemp(prefix="cycleqd-forks-"))
        self.path = self.folder / "socket"
        self._links: set[socket.socket] = set()
        self._lock, self._ended = threading.Lock(), False
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cycleqd.run.local.forks", str(self.path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "_KFP_RUNTIME": "true"},  # kfp then imports what a task needs, not its client
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, task: GraphTask, arguments: list[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> int:
        """Run a task in a fork."""
        source = folder / "component.py"
        source.write_text(task.command[-1], encoding="utf-8")
        job = {
            "arguments": ["--component_module_path", str(source), *arguments],
            "environment": {**os.environ, **environment, "TMPDIR": str(folder.parent)},
            "folder": str(Path.cwd()),
        }
        self._wait_for_imports()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link, log.open("ab") as stream:
            try:
                link.connect(str(self.path))
                with self._lock:
                    if self._ended:
                        return 128 + signal.SIGKILL
                    self._links.add(link)
                link.sendmsg([b"j"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [stream.fileno()]))])
                link.sendall(json.dumps(job).encode() + b"\n")
                answer = link.makefile("rb").readline()
            except OSError as error:
                raise UnavailableError(f"the process that tasks are forked from has ended ({error})") from error
            finally:
                with self._lock:
                    self._links.discard(link)
        return int(answer) if answer else 128 + signal.SIGKILL

    def end(self) -> None:
        """End all tasks that run, and begin no more: each `run` returns when the processes of its task are gone."""
        with self._lock:
            self._ended = True
            for link in self._links:
                with contextlib.suppress(OSError):  # it has just ended
                    link.shutdown(socket.SHUT_WR)

    def _wait_for_imports(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self.path.exists() and not self._ended:
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise UnavailableError(f"the process that tasks are forked from did not start: {' '.join(last)}")
            time.sleep(0.05)


def serve(path: Path, starter: int) -> None:
    """Import everything, then fork a keeper for each task, until the process that started this one is gone.

    Args:
        path: Where the socket is made once tasks can be forked.
        starter: Our parent's id. It is not asked for here, as the parent may be gone before our first line.
    """
    for name in _MODULES:
        with contextlib.suppress(ImportError):  # what is not installed here, no stage needs here
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        hidden = path.with_suffix(".new")
        server.bind(str(hidden))
        server.listen()
        hidden.rename(path)  # drivers find it only when it is ready
        server.settimeout(1.0)
        while os.getppid() == starter:
            with contextlib.suppress(TimeoutError):
                link, _ = server.accept()
                with link:
                    if os.fork() == 0:
                        server.close()
                        link.settimeout(None)
                        _keep(link)
    shutil.rmtree(path.parent, ignore_errors=True)


def _keep(link: socket.socket) -> None:
    """Run the driver's job in a child and report its status. End it with all its processes if the driver goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    try:
        _, rights, _, _ = link.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
        (stream,) = array.array("i", rights[0][2])
        job = json.loads(link.makefile("rb").readline())
    except (OSError, IndexError, ValueError):  # the driver was killed while it sent the job
        os._exit(1)
    child = os.fork()
    if child == 0:
        link.close()
        _become(job, stream)
    os.close(stream)
    watcher = os.pidfd_open(child)
    if watcher in select.select([watcher, link.fileno()], [], [])[0]:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            link.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        time.sleep(_POLITE_SECONDS)
    os.killpg(0, signal.SIGKILL)  # ourselves, too


def _become(job: dict[str, Any], stream: int) -> None:
    """Be the task: run its function as KFP's executor does in a container."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(stream, number)
        os.close(stream)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        tempfile.tempdir = None  # TMPDIR may be another one
        from kfp.dsl.executor_main import executor_main

        sys.argv = ["executor_main", *job["arguments"]]
        executor_main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
