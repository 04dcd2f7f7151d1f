"""Runs inside vLLM's server: makes the adapters that requests name from cores in S3, and keeps their folders bounded.

`register` is an entry point of the group vllm.general_plugins, `AdapterKeeper` a middleware (`vllm serve
--middleware`). All that depends on vLLM's version is below `Folders`. vLLM reads an adapter's folder again whenever the
adapter has left its caches, and ends when the folder is gone. So a folder is removed only when no request in flight
names it, and vLLM is made to forget the name at the same moment: the next request for it is resolved anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cycleqd.errors import CycleQDError, IntegrityError, InvalidInputError, UnavailableError
from cycleqd.outside import parse_json
from cycleqd.search.place import Place
from cycleqd.search.records import ModelRef
from cycleqd.storage import layout
from cycleqd.storage.addresses import Address
from cycleqd.storage.client import connect_client
from cycleqd.storage.cores import load_core, opened_basis
from cycleqd.storage.evolution import manifest
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings

_VARIABLE = "CYCLEQD_SERVED"
_AT_A_TIME = 2  # adapters that are made: each takes memory for its matrices in float32

log = logging.getLogger("vllm.cycleqd")


@dataclass(frozen=True)
class Served:
    """What `cycleqd serve` lets the plug-in know, in one variable of the server's environment.

    `base` is the digest of the served base, `rank` what the server has set memory aside for, `dtype` the base's.
    `folder` is the server's own, in which adapters take about `size` bytes; `cache` is the size of the machine's cache
    of checkpoints, as `place.cache_size` has it.
    """

    base: str
    rank: int
    dtype: str
    folder: str
    size: int
    cache: str

    def environment(self) -> dict[str, str]:
        """The variable."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Served | None:
        """What the variable says; None outside of `cycleqd serve`."""
        return cls(**json.loads(os.environ[_VARIABLE])) if _VARIABLE in os.environ else None


class Folders:
    """Adapters' folders by the digests of their cores, made once, the least recently asked for first.

    Belongs to the server's event loop, but for `_make`, which works in threads.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        self._served, self._settings = served, settings
        self._client = connect_client(settings)
        self._made: dict[str, asyncio.Future[int]] = {}
        self._held: Counter[str] = Counter()
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    async def get(self, name: str) -> Path:
        """The folder of an adapter, made if need be.

        Args:
            name: EVOLUTION/MODEL/DIGEST.

        Raises:
            CycleQDError: It is no such name, or its core, basis or base are not as they must be.
        """
        address = Address.parse(name)
        making = self._made.pop(address.digest, None)
        if making is None or (making.done() and making.exception()):
            making = asyncio.ensure_future(self._in_turn(address))
        self._made[address.digest] = making
        await asyncio.shield(making)  # others may wait for it, too
        return Path(self._served.folder) / address.digest

    @contextmanager
    def held(self, name: str, forget: Callable[[str], None]) -> Iterator[None]:
        """While a request is in flight: the folder that it names stays; after it there may be room to make.

        Args:
            name: The request's model, whatever it is.
            forget: Called with the digest of a core whose folder goes; the engine must not use it after this.
        """
        digest = name.rpartition("/")[2]
        self._held[digest] += 1
        if digest in self._made:
            self._made[digest] = self._made.pop(digest)
        try:
            yield
        finally:
            self._held[digest] -= 1
            self._held += Counter()  # without those that nothing holds
            self._trim(forget)

    def _trim(self, forget: Callable[[str], None]) -> None:
        whole = {d: made.result() for d, made in self._made.items() if made.done() and not made.exception()}
        total = sum(whole.values())
        for digest, size in whole.items():
            if total <= self._served.size:
                break
            if not self._held[digest]:
                forget(digest)
                del self._made[digest]
                shutil.rmtree(Path(self._served.folder) / digest)
                total -= size

    async def _in_turn(self, address: Address) -> int:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._make, address)
            except CycleQDError as error:
                log.warning("%s: %s", address, error)
                raise

    def _make(self, address: Address) -> int:
        """Write an adapter's folder; its bytes."""
        import torch

        from cycleqd.weights.local import LocalSink
        from cycleqd.weights.plain_adapter import write_adapter
        from cycleqd.weights.span import low_rank

        began, served = time.monotonic(), self._served
        store = Store(self._client, self._settings.bucket, address.evolution)
        core = load_core(store, ModelRef(address.model, address.digest))
        if core.base != served.base:
            raise InvalidInputError(f"{address} is a model of base {core.base}, and this server has {served.base}")
        if core.basis != manifest(store, layout.BASIS).digest:
            raise IntegrityError(f"{address} is a model of basis {core.basis}, which its evolution does not have")
        rank = max(min(matrix.shape) for matrix in core.matrices.values())
        if rank > served.rank:
            raise InvalidInputError(
                f"{address} has rank {rank}, and this server takes {served.rank}; start one for its evolution"
            )
        folder = Path(served.folder) / address.digest
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with opened_basis(store, Place(cache_size=served.cache)) as basis:
            if {name: tuple(matrix.shape) for name, matrix in core.matrices.items()} != basis.shapes:
                raise IntegrityError(f"{address} does not have the matrices of its basis")
            dtype = getattr(torch, served.dtype)
            written = write_adapter(LocalSink(part), low_rank(basis, core), core.base, dtype)
        part.rename(folder)
        log.info("%s: %.2f s, %d bytes", address, time.monotonic() - began, written.size)
        return written.size


_folders: Folders | None = None


def folders() -> Folders | None:
    """Those of this process; None where nothing is served."""
    global _folders
    served = Served.from_environment()
    if _folders is None and served is not None:
        _folders = Folders(served, Settings.from_environment())
    return _folders


def register() -> None:
    """Let vLLM ask for adapters that it does not know; called in each of its processes."""
    if Served.from_environment() is None:
        return
    from vllm.exceptions import GracefulHTTPError
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class Resolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            known = folders()
            assert known is not None
            try:
                path = await known.get(lora_name)
            except CycleQDError as error:
                busy = isinstance(error, UnavailableError)
                status = HTTPStatus.SERVICE_UNAVAILABLE if busy else HTTPStatus.BAD_REQUEST
                raise GracefulHTTPError(str(error), status) from error
            return LoRARequest(lora_name, 1, str(path))  # vLLM puts an id of its own, never used before, for the 1

    LoRAResolverRegistry.register_resolver("cycleqd", Resolver())
    _leave_the_base_alone()


def _leave_the_base_alone() -> None:
    """On a CPU vLLM 0.32 takes, for rows without an adapter, the one in its last slot (index -1): give them none."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops

    shrink = lora_ops.bgmv_shrink

    def bgmv_shrink(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, scaling: float = 1.0
    ) -> None:
        shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
        output_tensor[lora_indices_tensor < 0] = 0

    for module in (lora_ops, torch_ops):
        setattr(module, "bgmv_shrink", bgmv_shrink)  # noqa: B010 -- mypy refuses another signature


class AdapterKeeper:
    """ASGI middleware: knows which adapters requests in flight name, and hides vLLM's own ways to load one."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, its adapter held for as long as it takes."""
        known = folders()
        if known is None or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].rstrip("/").endswith("_lora_adapter"):
            await send({"type": "http.response.start", "status": HTTPStatus.NOT_FOUND, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            messages, name = await _read(receive)
            with known.held(name, lambda digest: _forget(scope["app"], digest)):
                await self._app(scope, _again(messages, receive), send)


def _forget(app: Any, digest: str) -> None:
    requests = app.state.openai_serving_models.lora_requests
    for name in [name for name in requests if name.endswith(f"/{digest}")]:
        del requests[name]


async def _read(receive: Any) -> tuple[list[Any], str]:
    """A request's messages up to the end of its body, and the model that it names; "" when it names none."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    try:
        return messages, str(parse_json(b"".join(m.get("body", b"") for m in messages))["model"])
    except (ValueError, KeyError, TypeError):
        return messages, ""


def _again(messages: list[Any], receive: Any) -> Any:
    waiting = iter(messages)

    async def read() -> Any:
        return next(waiting, None) or await receive()

    return read
