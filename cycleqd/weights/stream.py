"""The streaming engine: reading, computing and writing overlap, in memory that does not grow with the model.

A result is cut into units: pieces of a few megabytes of a tensor, or whole matrices where the arithmetic needs them.
Units are read ahead, computed by a pool (one thread a unit, so that thread counts change no byte) and written in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.layout import INDEX, Shard, index_json, plan_shards
from cycleqd.weights.manifest import FileEntry, Manifest
from cycleqd.weights.protocols import Buffer, Sink, Writer
from cycleqd.weights.tensors import NotFiniteError, finite, from_bytes, to_bytes
from cycleqd.weights.verified import VerifiedReader
from cycleqd.weights.workers import single_threaded

CHUNK = 1 << 22
"""Elements of a unit that is not a whole tensor: 8 MiB of bf16."""

_READERS = 4
_BATCH = 128_000_000  # bytes of stored matrices that are computed together on a GPU; larger ones fill it alone
_TOO_LARGE = "The result's {0.name} does not fit {0.dtype}; use smaller coefficients or a smaller w_max."

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""


@dataclass(frozen=True)
class Unit:
    """Elements [start, stop) of one tensor of the result."""

    tensor: TensorInfo
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return (self.stop - self.start) * self.tensor.item_size


Batch = list[Unit]


class Recipe(Protocol):
    """What to compute from what. Stateless: called from several threads."""

    def prepare(self) -> None:
        """What must have happened once, in the calling thread, before several threads compute."""

    def computes(self, tensor: TensorInfo) -> bool:
        """Whether there is arithmetic to do; otherwise the one input is copied.

        Args:
            tensor: A tensor of the result.
        """

    def inputs(self, tensor: TensorInfo) -> Sequence[Checkpoint]:
        """The checkpoints whose copy of a tensor is read.

        Args:
            tensor: A tensor of the result.
        """

    def pieces(self, tensor: TensorInfo) -> int:
        """In how many equal parts a tensor must be computed: 1 for a whole, 0 where any elements will do.

        Args:
            tensor: A tensor of the result.
        """

    def scratch(self, tensor: TensorInfo) -> int:
        """How many fp32 arrays of a unit's size computing takes beside its inputs and its result.

        Args:
            tensor: A tensor of the result.
        """

    def compute(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """The result in the storage dtype, flat.

        Args:
            unit: The elements to compute.
            arrays: The inputs' elements, flat, in their storage dtypes.

        Raises:
            NotFiniteError: an input or the result holds NaN or Inf.
        """

    def batches(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Whether two neighbours are computed together.

        Args:
            first: A tensor of the result.
            second: The next one.
        """

    def compute_batch(self, units: Sequence[Unit], arrays: Sequence[Sequence[torch.Tensor]]) -> Sequence[torch.Tensor]:
        """`compute` for neighbours that are computed together.

        Args:
            units: Whole tensors, or pieces of one size.
            arrays: The inputs of each unit.
        """


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def write_checkpoint(
    base: Checkpoint, recipe: Recipe, sink: Sink, *, shard_size: int, threads: int | None, progress: Progress | None
) -> Manifest:
    """Stream every tensor of the base's table through a recipe, and copy the base's other files; the result's manifest.

    Nothing appears in the sink until every byte is computed, written and verified. On any failure every writer is
    aborted: nothing stays, but for whole files in S3 when it fails between two of them.

    Args:
        base: Its tensors' names, shapes and dtypes are the result's.
        recipe: What to compute from what.
        sink: Where the result is written.
        shard_size: Most bytes of a file.
        threads: CPU threads; None: all processors. The bytes are the same.
        progress: Called with the number of bytes written since the last call.

    Raises:
        InvalidInputError: an input or the result holds NaN or Inf.
        IntegrityError: what was read is not what was recorded.
        UnavailableError: the disk is full, or the store fails.
    """
    shards = plan_shards(list(base.tensors.values()), shard_size)
    run = _Pass(recipe, threads or default_threads())
    with ExitStack() as stack:
        writers: dict[str, tuple[int, Writer]] = {}

        def create(name: str, size: int) -> Writer:
            writer = sink.create(name, size)
            stack.callback(writer.abort)
            writers[name] = (size, writer)
            return writer

        outputs = {shard.name: create(shard.name, shard.size) for shard in shards}
        for name, content in _companions(base, run, shards).items():
            create(name, len(content)).write(content)
        for shard in shards:
            outputs[shard.name].write(shard.header)
        for unit, data in run.results(shards):
            outputs[unit.tensor.file].write(data)
            if progress:
                progress(len(data))
        run.finish()
        manifest = Manifest({name: FileEntry(size, w.close()) for name, (size, w) in sorted(writers.items())})
        stack.pop_all()
    sink.keep_only(manifest.files)
    return manifest


_COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_COPIED_STARTS = ("LICENSE", "NOTICE", "USE_POLICY")


def _companions(base: Checkpoint, run: _Pass, shards: Sequence[Shard]) -> dict[str, bytes]:
    """The base's config, tokenizer, templates, custom code and licence, and the result's own index."""
    files = {}
    for name, size in base.sizes.items():
        training = name.endswith(".index.json") or name in ("trainer_state.json", "adapter_config.json")
        if (name.endswith(_COPIED) or name.startswith(_COPIED_STARTS)) and not training:
            files[name] = bytes(run.reader(base).read(name, 0, size))
    if len(shards) > 1:
        files[INDEX] = index_json(shards)
    return files


class _Pass:
    """One pass over all units, with its readers and thread pools."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._recipe = recipe
        self._threads = threads
        self._readers: dict[int, VerifiedReader] = {}

    def reader(self, checkpoint: Checkpoint) -> VerifiedReader:
        """The one reader of a checkpoint's source."""
        key = id(checkpoint.source)
        if key not in self._readers:
            self._readers[key] = VerifiedReader(checkpoint.source)
        return self._readers[key]

    def finish(self) -> None:
        """Verify the digests of everything read."""
        for reader in self._readers.values():
            reader.finish()

    def results(self, shards: Sequence[Shard]) -> Iterator[tuple[Unit, Buffer]]:
        """Every unit's bytes, in order. In memory at most four times what the largest unit needs, or 200 MB."""
        units = self._batched([unit for shard in shards for tensor in shard.tensors for unit in self._cut(tensor)])
        limit = max(4 * max(map(self._cost, units), default=0), 24 * CHUNK)
        most = 2 * self._threads + 2
        pending: deque[tuple[Batch, Future[list[Buffer]]]] = deque()
        used = 0
        self._recipe.prepare()
        with ExitStack() as stack:
            readers = stack.enter_context(ThreadPoolExecutor(_READERS))
            stack.callback(readers.shutdown, cancel_futures=True)
            workers = stack.enter_context(single_threaded(self._threads))
            for unit in units:
                while pending and (len(pending) >= most or used + self._cost(unit) > limit):
                    done, future = pending.popleft()
                    yield from zip(done, future.result(), strict=True)
                    used -= self._cost(done)
                pending.append((unit, self._submit(unit, readers, workers)))
                used += self._cost(unit)
            while pending:
                done, future = pending.popleft()
                yield from zip(done, future.result(), strict=True)

    def _cut(self, tensor: TensorInfo) -> Iterator[Unit]:
        count = tensor.nbytes // tensor.item_size
        pieces = self._recipe.pieces(tensor)
        step = count // pieces if pieces else CHUNK
        for start in range(0, count, max(step, 1)):
            yield Unit(tensor, start, min(start + step, count))

    def _batched(self, units: Sequence[Unit]) -> list[Batch]:
        """Neighbours that are computed together, such as the key projections of all layers; on a CPU single units."""
        batches: list[Batch] = []
        for unit in units:
            last = batches[-1] if batches else []
            fits = (len(last) + 1) * unit.nbytes <= _BATCH
            if last and fits and self._recipe.batches(last[0].tensor, unit.tensor):
                last.append(unit)
            else:
                batches.append([unit])
        return batches

    def _cost(self, batch: Batch) -> int:
        return sum(map(self._unit_cost, batch))

    def _unit_cost(self, unit: Unit) -> int:
        elements = unit.stop - unit.start
        scratch = 4 * self._recipe.scratch(unit.tensor)
        return elements * (unit.tensor.item_size * (len(self._recipe.inputs(unit.tensor)) + 1) + scratch)

    def _submit(self, batch: Batch, readers: ThreadPoolExecutor, workers: ThreadPoolExecutor) -> Future[list[Buffer]]:
        reads = [[readers.submit(self._read, c, unit) for c in self._recipe.inputs(unit.tensor)] for unit in batch]
        return workers.submit(self._compute, batch, reads)

    def _read(self, checkpoint: Checkpoint, unit: Unit) -> Buffer:
        stored = checkpoint.tensors[unit.tensor.name]
        first = stored.start + unit.start * stored.item_size
        return self.reader(checkpoint).read(stored.file, first, first + (unit.stop - unit.start) * stored.item_size)

    def _compute(self, batch: Batch, reads: Sequence[Sequence[Future[Buffer]]]) -> list[Buffer]:
        data = [[read.result() for read in of_unit] for of_unit in reads]
        if not self._recipe.computes(batch[0].tensor):
            return data[0]
        arrays = [self._arrays(unit, pieces) for unit, pieces in zip(batch, data, strict=True)]
        try:
            if len(batch) == 1:
                return [to_bytes(self._recipe.compute(batch[0], arrays[0]))]
            return [to_bytes(result) for result in self._recipe.compute_batch(batch, arrays)]
        except NotFiniteError as error:
            sentences = [self._culprit(unit, found) for unit, found in zip(batch, arrays, strict=True)]
            raise InvalidInputError(next((s for s in sentences if s), _TOO_LARGE.format(batch[0].tensor))) from error

    def _arrays(self, unit: Unit, data: Sequence[Buffer]) -> list[torch.Tensor]:
        stored = [c.tensors[unit.tensor.name] for c in self._recipe.inputs(unit.tensor)]
        return [from_bytes(piece, s.dtype) for piece, s in zip(data, stored, strict=True)]

    def _culprit(self, unit: Unit, arrays: Sequence[torch.Tensor]) -> str | None:
        name = unit.tensor.name
        for checkpoint, array in zip(self._recipe.inputs(unit.tensor), arrays, strict=True):
            try:
                finite(array)
            except NotFiniteError:
                file = f"{checkpoint.location}/{checkpoint.tensors[name].file}"
                return f"{name} in {file} holds NaN or Inf; the model is broken and cannot be merged."
        return None
