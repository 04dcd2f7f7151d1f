"""The two objects that a stage leaves in its folder, and the rule that makes every stage repeatable.

`result.json` is a sealed record {format, inputs, method_version, outputs, stage, sha256}: all that later stages read,
written last, byte-identical whenever the stage is deterministic. `run.json` records when, where and with what it was
computed; it is never compared, and never rewritten once the result exists.

A sealed record is a JSON object whose last key, sha256, is the digest of its bytes without that key. So an alteration
is noticed whatever later versions would write. A record is identified by the sha256 of all of its bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cycleqd import __version__
from cycleqd.errors import CycleQDError, IntegrityError
from cycleqd.search.records import JSON, canonical
from cycleqd.storage import layout
from cycleqd.storage.formats import decode, encode
from cycleqd.storage.objects import Store

_LIBRARIES = ("torch", "numpy", "safetensors", "transformers", "vllm", "boto3", "mlflow-skinny")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


class Clock:
    """Wall seconds by part of a stage, and the moment it started (milliseconds since the epoch, for MLflow)."""

    def __init__(self) -> None:
        self.started = time.time_ns() // 1_000_000
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, JSON] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to a part.

        Args:
            name: Name of the part in run.json; the seconds of equal names add up.
        """
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - begin, 4)


@dataclass(frozen=True)
class Record:
    """A sealed record as it was read: its content in the present format, and the sha256 (hex) of all of its bytes."""

    body: JSON
    sha256: str


def sealed(body: JSON) -> bytes:
    """The bytes of a record, ending in the digest that makes any later change noticeable.

    Args:
        body: The record's content, a dict of JSON values, without format and seal.
    """
    return _with_seal(encode(body))


def _with_seal(bare: bytes) -> bytes:
    """The bytes of a JSON object with its sha256 as one more key, the last."""
    return bare[:-1] + f',"sha256":"{hashlib.sha256(bare).hexdigest()}"}}'.encode()


_SEAL = len(_with_seal(b"}"))  # bytes


def find_record(store: Store, key: str) -> Record | None:
    """A sealed record, None when there is none.

    Args:
        store: Objects of the evolution.
        key: Key of the record, relative to the evolution.

    Raises:
        IntegrityError: the seal is broken.
        InvalidInputError: the record is of a format that this version does not read.
    """
    data = store.find(key)
    if data is None:
        return None
    url, bare = store.url(key), data[:-_SEAL] + b"}"
    if _with_seal(bare) != data:
        decode(key, bare, url)  # explains better what is cut off, and what cycleqd 0.1 wrote, which had another seal
        raise IntegrityError(
            f"{url} does not have the sha256 it is sealed with; it was altered: restore it, or delete it to compute it"
            " again"
        )
    return Record(decode(key, bare, url), hashlib.sha256(data).hexdigest())


def need_record(store: Store, folder: str) -> Record:
    """The result of a stage that must have ended. Raises otherwise as `find_record` does.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.

    Raises:
        IntegrityError: there is no result.
    """
    found = find_record(store, layout.result(folder))
    if found is None:
        raise IntegrityError(f"{store.url(layout.result(folder))} is missing: run the stage that writes it first")
    return found


def read_result(store: Store, folder: str) -> JSON | None:
    """The content of a stage's result, None when there is none. Raises as `find_record` does.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.
    """
    found = find_record(store, layout.result(folder))
    return None if found is None else found.body


def need_result(store: Store, folder: str) -> JSON:
    """The content of a result that must exist. Raises as `need_record` does.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.
    """
    return need_record(store, folder).body


def find_result(store: Store, folder: str, name: str, version: int, inputs: JSON) -> JSON | None:
    """The outputs of a result that matches stage, method version and inputs; None when it has to be computed.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.
        name: Name of the stage.
        version: METHOD_VERSION of the stage's code.
        inputs: What the outputs depend on, JSON.
    """
    body = read_result(store, folder)
    return body["outputs"] if body is not None and matches(body, name, version, inputs) else None


def matches(body: JSON | None, name: str, version: int, inputs: JSON) -> bool:
    """Whether a result is of this stage, method version and inputs.

    Args:
        body: Content of the result; None where there is none.
        name: Name of the stage.
        version: METHOD_VERSION of the stage's code.
        inputs: What the outputs depend on, JSON.
    """
    wanted = {"stage": name, "method_version": version, "inputs": inputs}
    return body is not None and canonical({key: body.get(key) for key in wanted}) == canonical(wanted)


def write_result(store: Store, folder: str, name: str, version: int, inputs: JSON, outputs: JSON, clock: Clock) -> JSON:
    """Write run.json, then the sealed result; the outputs that are recorded. The data must be written before.

    A mark that MLflow lacks the result goes before it; whoever logs it takes the mark away. Of two processes that do
    the same at once the first one's records stay, and both log these. A run.json that had ended before this work began
    belongs to a result that was never written, or was deleted.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.
        name: Name of the stage.
        version: METHOD_VERSION of the stage's code.
        inputs: What the outputs depend on, JSON.
        outputs: What was computed, JSON.
        clock: Started before the outputs were computed.
    """
    standing = find_result(store, folder, name, version, inputs)
    if standing is not None:
        return standing
    described, key = describe_run(clock), layout.run(folder)
    if not store.create(key, encode(described)) and store.get_json(key)["finished"] < clock.started:
        store.put_json(key, described)
    store.put_json(layout.unlogged(folder), {})
    result = sealed({"stage": name, "method_version": version, "inputs": inputs, "outputs": outputs})
    if not store.create(layout.result(folder), result):
        standing = find_result(store, folder, name, version, inputs)
        if standing is None:  # what is there was made from something else
            store.put(layout.result(folder), result)
    return standing or outputs


def once(store: Store, folder: str, name: str, version: int, inputs: JSON, compute: Callable[[Clock], JSON]) -> JSON:
    """The outputs of a stage: read when a matching result exists, else computed and recorded.

    A failure is ignored when another process has meanwhile recorded the same: what both worked from may have been
    deleted since, or have moved on.

    Args:
        store: Objects of the evolution.
        folder: Folder of the stage.
        name: Name of the stage.
        version: METHOD_VERSION of the stage's code.
        inputs: What the outputs depend on, JSON.
        compute: Computes the outputs (JSON), after it has written the stage's data.
    """
    found = find_result(store, folder, name, version, inputs)
    if found is not None:
        return found
    clock = Clock()
    try:
        outputs = compute(clock)
    except CycleQDError:
        found = find_result(store, folder, name, version, inputs)
        if found is None:
            raise
        return found
    return write_result(store, folder, name, version, inputs, outputs, clock)


def provenance() -> dict[str, str]:
    """Which code in which image computes, and the KFP run and pod that it does so in, where there are such."""
    return {
        "code_version": os.environ.get("CYCLEQD_CODE_VERSION") or __version__,
        "image": os.environ.get("CYCLEQD_IMAGE", ""),
        "kfp_run": os.environ.get("KFP_RUN_ID", ""),
        "kfp_pod": os.environ.get("KFP_POD_NAME", ""),
    }


def describe_run(clock: Clock) -> JSON:
    """When, how long, where and with what: the content of run.json. Times in milliseconds since the epoch.

    Args:
        clock: Started when the stage began.
    """
    return {
        "started": clock.started,
        "finished": time.time_ns() // 1_000_000,
        "seconds": clock.seconds,
        "peak_memory": peak_memory(os.getpid()),
        **provenance(),
        "host": platform.node(),
        **machine(),
        **clock.facts,
    }


def peak_memory(pid: int) -> int:
    """Bytes: the largest resident sets so far of a process and of its living descendants, added up; 0 without /proc.

    An engine's worker counts because it lives on; sandboxes are gone by then. Memory that a fork shares counts twice.

    Args:
        pid: Id of the process.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended, or this is not Linux
        return 0
    own = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return own + sum(peak_memory(int(child)) for part in children for child in part)


def machine() -> dict[str, JSON]:
    """What computed bytes may depend on besides the inputs: the CPU, its instruction sets, the libraries."""
    return {"cpu": platform.machine(), "instruction_sets": _flags(), "libraries": _versions()}


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
