"""A process that has imported what stages import, and forks itself for each task of a local run.

Importing torch, transformers, MLflow and kfp takes seconds, which each task of a small evolution would otherwise spend
again. A fork is as fresh a process as one that was started: nothing was computed before it, and it takes arguments,
environment, folder and standard streams from its client.

`python -m cycleqd.run.local.warm serve SOCKET STARTER` is the server; `python cycleqd/run/local/warm.py …` runs
Python's arguments through it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SOCKET = "CYCLEQD_WARM"
_MODULES = (
    *("kfp.dsl.executor_main", "boto3", "mlflow", "torch", "safetensors", "transformers"),
    *(f"components.{stage}.stage" for stage in ("seed", "select_parents", "merge", "evaluate", "update_archives")),
    *(
        f"transformers.models.{part}"
        for part in ("auto.modeling_auto", "auto.tokenization_auto", "llama.modeling_llama")
    ),
    *("cycleqd.evaluation.engines.transformers", "cycleqd.tracking.logbook", "cycleqd.weights.merge"),
)
_STREAMS = 3
_START_SECONDS = 180


class Warm:
    """The server, as long as the context lasts. It ends with its starter, however that ends."""

    def __enter__(self) -> Warm:
        self.folder = Path(tempfile.mkdtemp(prefix="cycleqd-warm-"))
        self.path = self.folder / "socket"
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cycleqd.run.local.warm", "serve", str(self.path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready(self) -> dict[str, str]:
        """Wait for the imports; the environment of clients. Empty if the server died: tasks then start as usual."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.path.exists() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return {SOCKET: str(self.path)} if self.path.exists() else {}


def main() -> None:
    """Server or client, by the arguments."""
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(request(sys.argv[1:]))


def request(arguments: list[str]) -> int:
    """Run `python ARGUMENTS` in a fork of the server; its exit status. Without a server, become that Python."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(os.environ.get(SOCKET, ""))
        except OSError:
            os.execv(sys.executable, [sys.executable, *arguments])
        job = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
        streams = array.array("i", range(_STREAMS))
        link.sendmsg([b"j"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        link.sendall(json.dumps(job).encode() + b"\n")
        answer = link.makefile("rb").readline()
    return int(answer) if answer else 1


def serve(path: Path, starter: int) -> None:
    """Import everything, then fork a keeper for each client, until the process `starter`, our parent, is gone.

    It may be gone before our first line, and our parent then be another from the start; so its id is told, not asked.
    """
    import importlib

    for name in _MODULES:
        with contextlib.suppress(ImportError):  # what is not installed here, no stage needs here
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        hidden = path.with_suffix(".new")
        server.bind(str(hidden))
        server.listen()
        hidden.rename(path)  # clients find it only when it is ready
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
    """Run the client's job in a child, report its status, and end it with all its processes if the client goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, rights, _, _ = link.recvmsg(1, socket.CMSG_SPACE(_STREAMS * array.array("i").itemsize))
    streams = array.array("i", rights[0][2])
    job = json.loads(link.makefile("rb").readline())
    child = os.fork()
    if child == 0:
        link.close()
        _become(job, list(streams))
    for stream in streams:
        os.close(stream)
    watcher = os.pidfd_open(child)
    if watcher in select.select([watcher, link.fileno()], [], [])[0]:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        link.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.5)  # for what cleans up after itself
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _become(job: dict[str, Any], streams: list[int]) -> None:
    """Be the Python process that the client asked for."""
    import runpy
    import traceback

    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(str(job["folder"]))
        tempfile.tempdir = None  # TMPDIR may be another one
        option, module, *rest = job["arguments"]
        assert option == "-m", f"only modules are run here, not {job['arguments']}"
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
