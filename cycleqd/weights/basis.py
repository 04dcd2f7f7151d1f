"""The shared basis of low-rank experts: orthonormal Q and P of every matrix, in which all descendants are small cores.

If expert k's task vector of a matrix is B_k A_k, every linear combination of experts, and whatever scales singular
values, is Q C Pᵀ: Q spans the columns of all B_k, P the rows of all A_k, and C, the core, is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import torch
from safetensors.torch import save

from cycleqd.errors import IntegrityError
from cycleqd.weights.headers import TensorInfo, read_header
from cycleqd.weights.manifest import FileEntry, Manifest
from cycleqd.weights.plain_adapter import Factors
from cycleqd.weights.protocols import Sink, Source
from cycleqd.weights.tensors import from_bytes
from cycleqd.weights.workers import in_order, single_threaded

_DROPPED = 1e-6  # of the largest singular value: directions below are rounding
_SHARD = 512 << 20  # bytes of a file of the basis, about: what is in memory before it is written


@dataclass(frozen=True)
class Basis:
    """Q and P of every matrix, read when they are asked for.

    Attributes:
        source: The folder.
        tensors: Of each matrix, by the base's tensor name, where Q [out, a] and P [in, b] lie, float32.
    """

    source: Source
    tensors: Mapping[str, tuple[TensorInfo, TensorInfo]]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of each matrix the shape of its cores, [a, b]."""
        return {name: (q.shape[1], p.shape[1]) for name, (q, p) in self.tensors.items()}

    def read(self, name: str) -> Factors:
        """Q and P of a matrix.

        Args:
            name: The base's name of the matrix.

        Returns:
            Q [out, a] and P [in, b], float32, with orthonormal columns.
        """
        q, p = (
            from_bytes(self.source.read_range(t.file, t.start, t.stop), t.dtype).view(t.shape)
            for t in self.tensors[name]
        )
        return q, p


def open_basis(source: Source) -> Basis:
    """Read the headers of a basis.

    Args:
        source: The folder that `write_basis` wrote, its files verified.

    Raises:
        IntegrityError: It holds something else.
    """
    found = {t.name: t for name, size in source.files().items() for t in read_header(source, name, size)}
    names = sorted({name.rpartition(".")[0] for name in found})
    try:
        return Basis(source, {name: (found[f"{name}.Q"], found[f"{name}.P"]) for name in names})
    except KeyError as error:
        raise IntegrityError(f"{source.location} is not a basis: it lacks {error}; restore it") from error


def write_basis(
    names: Sequence[str],
    factors: Callable[[str], Sequence[Factors]],
    sink: Sink,
    threads: int,
) -> Manifest:
    """Write Q and P of every matrix that an expert changes.

    Args:
        names: The base's names of the matrices, in the order of the result.
        factors: Of a matrix's name, each expert's B and A; of rank 0 where it leaves the matrix alone.
        sink: Where the basis is written.
        threads: Matrices that are worked on at a time; changes no byte.

    Returns:
        The basis' files.
    """
    entries: dict[str, FileEntry] = {}
    with single_threaded(threads) as pool, ExitStack() as stack:
        made = zip(names, in_order(pool, lambda name: span(factors(name)), names, 2 * threads), strict=True)
        for number in count(1):
            shard: dict[str, torch.Tensor] = {}
            for name, (q, p) in made:
                shard |= {f"{name}.Q": q, f"{name}.P": p}
                if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD:
                    break
            if not shard:
                break
            data = save(shard)
            writer = sink.create(f"basis-{number:05d}.safetensors", len(data))
            stack.callback(writer.abort)
            writer.write(data)
            entries[f"basis-{number:05d}.safetensors"] = FileEntry(len(data), writer.close())
        stack.pop_all()
    return Manifest(dict(sorted(entries.items())))


def span(experts: Sequence[Factors]) -> Factors:
    """Q and P of one matrix: one QR of all experts' columns and one of their rows, in float64.

    The factors are balanced first, so that each column has the weight that it has in the task vector; directions below
    1e-6 of the largest are dropped.

    Args:
        experts: Of each expert B [out, r] and A [r, in], float32, r ≥ 0; not all of rank 0.

    Returns:
        Q [out, a] and P [in, b] with orthonormal columns, float32.
    """
    pairs = [(pair[0].double(), pair[1].double()) for pair in experts if pair[0].shape[1]]
    q = _orthonormal([b @ torch.linalg.qr(a.T).R.T for b, a in pairs])
    p = _orthonormal([a.T @ torch.linalg.qr(b).R.T for b, a in pairs])
    return q.float().contiguous(), p.float().contiguous()


def _orthonormal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """An orthonormal basis of the blocks' columns, most important first; at least one direction."""
    q, r = torch.linalg.qr(torch.cat(list(blocks), dim=1))
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    kept = max(int((values > _DROPPED * values[0]).sum()), 1)
    found: torch.Tensor = q @ u[:, :kept]
    return found
