"""vLLM's OpenAI-compatible server for an evolution in the span: its base in memory, adapters from S3 (`cycleqd serve`).

The server belongs to no task: it stays between generations and serves every evolution of the bucket that has its base.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.evaluation.engines import EngineSettings
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.engines.common.resolver import AdapterKeeper, Served
from cycleqd.evaluation.engines.common.watched import environment
from cycleqd.evaluation.engines.vllm import RANKS, VllmEngine
from cycleqd.run.estimate import server_slots
from cycleqd.search.config import Config
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.cores import opened_basis
from cycleqd.storage.evolution import load_config, manifest
from cycleqd.storage.models import fetched
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result
from cycleqd.storage.settings import Settings

POLL_SECONDS = 2.0
END_SECONDS = 30.0
FOLDERS = 20 * 10**9  # bytes of adapters, about: 80 of an 8B's at rank 48


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and what else vLLM is started with (`vllm serve`'s own options)."""

    host: str
    port: int
    more: Sequence[str] = ()


def wait_for_seeding(store: Store, say: Callable[[str], None]) -> Config:
    """The frozen configuration, as soon as base and basis are in S3.

    Args:
        store: The evolution.
        say: Called once with a sentence, if there is something to wait for.

    Raises:
        InvalidInputError: The evolution's models are full checkpoints, or scored as such.
    """
    said = False
    while True:
        config = load_config(store) if read_result(store, layout.SEED) else None
        if config is not None and (not config.in_span or config.models.keep_dense):
            raise InvalidInputError(
                f"the models of {store.url('')} are scored as full checkpoints, and a server has one base and adapters"
                " of it; evolve adapters (models.rank without keep_dense, docs/adapters.md) or take the vllm engine"
            )
        if config is not None and all(read_result(store, layout.stage(m, "make")) for m in ("base", layout.BASIS)):
            return config
        if not said:
            say(f"waiting until {store.url('')} is seeded")
            said = True
        time.sleep(POLL_SECONDS)


@contextmanager
def serving(
    settings: Settings, store: Store, config: Config, place: Place, listening: Listening
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is starting; it ends with the block, with all of its processes.

    Args:
        settings: Where this machine keeps its cache and temporary files.
        store: The evolution.
        config: Its frozen configuration.
        place: Names the cache's size and the device.
        listening: Where, and how else.
    """
    recorded = manifest(store, "base")
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with (
        fetched(store, place, "base") as folder,
        tempfile.TemporaryDirectory(prefix="adapters-", dir=settings.scratch) as adapters,
    ):
        with opened_basis(store, place) as basis:
            rank = smallest_rank(max(min(shape) for shape in basis.shapes.values()))
        wanted = config.evaluation
        own = {**place.engine_args.given, **wanted.engine_args.given}
        how = (wanted.dtype, wanted.batch_tokens, wanted.threads, wanted.max_context, place.device)
        engine = VllmEngine(EngineSettings(*how, arguments=own))
        arguments = engine.arguments(ModelFolder.open(folder, wanted.max_context))
        slots = server_slots(config)
        arguments |= {"served_model_name": recorded.digest, "host": listening.host, "port": listening.port}
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": slots, "max_cpu_loras": 2 * slots}
        arguments |= {
            "middleware": f"{AdapterKeeper.__module__}.{AdapterKeeper.__name__}",
            "disable_uvicorn_access_log": True,
        }
        del arguments["worker_extension_cls"]
        served = Served(recorded.digest, rank, arguments["dtype"], adapters, FOLDERS, place.cache_size)
        with environment(wanted.threads):
            process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags(arguments), *listening.more],
                env=variables(os.environ, served),
                start_new_session=True,
            )
        try:
            yield process
        finally:
            end(process)


def smallest_rank(rank: int) -> int:
    """The least rank of vLLM's that a rank fits.

    Args:
        rank: The largest of an evolution's adapters.

    Raises:
        InvalidInputError: None does.
    """
    for found in RANKS:
        if found >= rank:
            return found
    raise InvalidInputError(
        f"the adapters have rank {rank}, and vLLM takes them up to {RANKS[-1]}: extract the experts at a lower one"
        " (models.rank)"
    )


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as `vllm serve` takes them.

    Args:
        arguments: Of vLLM's engine and server by name; those that are True or False are switches.
    """
    found = []
    for name, value in arguments.items():
        flag = f"{'no-' if value is False else ''}{name.replace('_', '-')}"
        found += [f"--{flag}"] + ([] if isinstance(value, bool) else [str(value)])
    return found


def variables(environ: Mapping[str, str], served: Served) -> dict[str, str]:
    """The server's environment: vLLM asks resolvers only where it may load adapters, and takes the key as its own.

    Args:
        environ: This process'.
        served: What the plug-in is to know.
    """
    key = environ.get("CYCLEQD_SERVER_KEY")
    return {
        **environ,
        **served.environment(),
        **({"VLLM_API_KEY": key} if key else {}),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }


def wait_until_ready(process: subprocess.Popen[bytes], listening: Listening) -> None:
    """Return when the server has its model.

    Args:
        process: The server's.
        listening: Where.

    Raises:
        UnavailableError: It ended.
    """
    host = "127.0.0.1" if listening.host == "0.0.0.0" else listening.host
    while process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://{host}:{listening.port}/health", timeout=5):
            return
        time.sleep(POLL_SECONDS)
    raise UnavailableError(
        f"vLLM ended with code {process.returncode} before it was ready; its log above has the cause"
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its engine's processes.

    Args:
        process: The server's, the leader of its session.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
