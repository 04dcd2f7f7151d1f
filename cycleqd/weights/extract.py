"""A low-rank adapter from a full expert: the truncated SVD of each matrix's task vector τ = θ_expert − θ_base."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.kinds import MATRIX, carried_by_none, kind_of
from cycleqd.weights.leading import leading_vectors
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.mutation import prepare_decompositions
from cycleqd.weights.plain_adapter import Factors, stream_adapter
from cycleqd.weights.protocols import Buffer, Sink
from cycleqd.weights.stream import CHUNK, Progress, default_threads
from cycleqd.weights.tensors import NotFiniteError, finite, from_bytes
from cycleqd.weights.tokenizer import Tokenizer
from cycleqd.weights.verified import VerifiedReader
from cycleqd.weights.workers import in_order, single_threaded

_FIRST = 1 << 16  # elements that are compared at a time


@dataclass(frozen=True)
class Energy:
    """‖τ‖² of one matrix, and ‖B A‖² of what the adapter keeps of it."""

    total: float
    kept: float


@dataclass(frozen=True)
class Extraction:
    """What was written, and what it keeps of the expert."""

    manifest: Manifest
    matrices: Mapping[str, Energy]
    """The adapter's matrices, by the base's names; those that the expert did not change are left out."""
    others: Mapping[str, float]
    """‖τ‖² of what no adapter carries, by kind: norms, biases, embeddings, heads, fused experts, routers, others."""

    @property
    def kept(self) -> float:
        """‖B A‖² / ‖τ‖² over the adapter's matrices, in [0, 1]; 1 where the expert changed none of them."""
        total = math.fsum(energy.total for energy in self.matrices.values())
        return math.fsum(energy.kept for energy in self.matrices.values()) / total if total else 1.0

    @property
    def other_shares(self) -> dict[str, float]:
        """The share of the whole ‖τ‖² that no adapter carries, by kind; their sum is the share in total."""
        total = math.fsum([*self.others.values(), *(energy.total for energy in self.matrices.values())])
        return {kind: energy / total for kind, energy in self.others.items()}


def extract(
    base: Checkpoint,
    expert: Checkpoint,
    rank: int,
    sink: Sink,
    *,
    base_model: str,
    keep_dense: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Extraction:
    """Write the adapter of a rank that is nearest to an expert, in the plain form, in float32, beside it the base's
    tokenizer, chat template and end tokens.

    Nothing appears in the sink until everything is computed, written and verified.

    Args:
        base: The model that the expert was fine-tuned from.
        expert: The full model.
        rank: The adapter's rank, from 1; matrices with a shorter side are kept whole.
        sink: The adapter's folder.
        base_model: What the adapter names as its base: a path or a name on Hugging Face.
        keep_dense: What no adapter carries is kept elsewhere, so that an expert that changed nothing else is one, too:
            its adapter is zero.
        threads: Matrices that are decomposed at a time (default: all processors); it changes no byte.
        device: Where matrices are decomposed; "cuda" may differ from "cpu" in the last bits.
        progress: Called with the number of bytes written since the last call.

    Raises:
        InvalidInputError: The models do not fit, hold NaN or Inf, or do not differ in what would be kept.
        IntegrityError: A checkpoint differs from its recorded digests.
    """
    refuse_problems(base, [expert])
    run = _Run(base, expert, rank, device, threads or default_threads())
    shapes = run.changed_matrices()
    if not shapes:
        run.refuse_unchanged(keep_dense)
        shapes = run.shapes(run.carried[:1])
    beside = Tokenizer(base.source).files()
    manifest = stream_adapter(sink, shapes, rank, run.factors(shapes), base_model, progress=progress, beside=beside)
    return Extraction(manifest, run.matrices, dict(sorted(run.others.items())))


@dataclass(frozen=True)
class _Done:
    """One tensor: its ‖τ‖², and its factors with their energy where it is one of the adapter's."""

    name: str
    total: float
    kept: float = 0.0
    factors: Factors | None = None


class _Run:
    """One pass over both checkpoints, in the order in which the base is stored."""

    def __init__(self, base: Checkpoint, expert: Checkpoint, rank: int, device: str, threads: int) -> None:
        self._base, self._expert = base, expert
        self._rank, self._device, self._threads = rank, device, threads
        self._base_reader, self._expert_reader = VerifiedReader(base.source), VerifiedReader(expert.source)
        self._floats = [tensor.name for tensor in base.tensors.values() if tensor.dtype in FLOATS]
        self.carried = [name for name in self._floats if kind_of(base, name) == MATRIX]
        self.matrices: dict[str, Energy] = {}
        self.others: dict[str, float] = {}

    def changed_matrices(self) -> dict[str, tuple[int, int]]:
        """The shapes of the matrices that differ. Their digests are checked when they are read as a whole."""
        names = self.carried
        with ThreadPoolExecutor(self._threads) as pool:
            return self.shapes([n for n, yes in zip(names, pool.map(self._changed, names), strict=True) if yes])

    def shapes(self, names: Collection[str]) -> dict[str, tuple[int, int]]:
        """[out, in] of matrices."""
        shapes = {name: self._base.tensors[name].shape for name in names}
        return {name: (shape[0], shape[1]) for name, shape in shapes.items()}

    def refuse_unchanged(self, keep_dense: bool) -> None:
        """Raise InvalidInputError where an expert with its base's matrices has nothing else that would be kept."""
        others = [name for name in carried_by_none(self._base) if self._changed(name)]
        kinds = sorted({kind_of(self._base, name) for name in others})
        if not kinds:
            raise InvalidInputError(
                f"{self._expert.location} has the weights of its base {self._base.location}, so there is nothing to"
                " extract; check both paths."
            )
        if not keep_dense:
            raise InvalidInputError(
                f"{self._expert.location} differs from its base {self._base.location} in {' and '.join(kinds)} alone,"
                " which no adapter carries; set models.keep_dense to keep them, or leave the expert out."
            )

    def factors(self, matrices: Collection[str]) -> Iterator[Factors]:
        """(B, A) of these matrices in the base's order; behind the last, all is counted and digests are checked."""
        prepare_decompositions(self._device)

        def done(name: str) -> _Done:
            return self._decomposed(name) if name in matrices else self._counted(name)

        with single_threaded(self._threads) as pool:
            for found in in_order(pool, done, self._floats, self._threads):
                if found.factors is not None:
                    if found.total:
                        self.matrices[found.name] = Energy(found.total, found.kept)
                    yield found.factors
                elif (kind := kind_of(self._base, found.name)) != MATRIX:
                    self.others[kind] = self.others.get(kind, 0.0) + found.total
        self._base_reader.finish()
        self._expert_reader.finish()

    def _counted(self, name: str) -> _Done:
        count = math.prod(self._base.tensors[name].shape)
        pieces = ((start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
        return _Done(name, math.fsum(_energy(self._tau(name, *piece)) for piece in pieces))

    def _decomposed(self, name: str) -> _Done:
        shape = self._base.tensors[name].shape
        tau = self._tau(name, 0, math.prod(shape)).view(shape)
        b, a, kept = _truncated(tau.to(self._device), self._rank)
        return _Done(name, _energy(tau), kept, (b.cpu(), a.cpu()))

    def _tau(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a task vector, in float32."""
        theirs = _elements(self._expert, name, start, stop, self._expert_reader.read)
        return theirs.sub_(_elements(self._base, name, start, stop, self._base_reader.read))

    def _changed(self, name: str) -> bool:
        """Whether a tensor differs; a fine-tuned one does in its first piece, so that little is read twice."""
        count = math.prod(self._base.tensors[name].shape)
        for start in range(0, count, _FIRST):
            mine, theirs = (
                _elements(model, name, start, min(start + _FIRST, count), model.source.read_range)
                for model in (self._base, self._expert)
            )
            if not torch.equal(mine, theirs):
                return True
        return False


def _elements(
    model: Checkpoint, name: str, start: int, stop: int, read: Callable[[str, int, int], Buffer]
) -> torch.Tensor:
    """A copy of elements [start, stop) of a stored tensor, in float32."""
    stored = model.tensors[name]
    first = stored.start + start * stored.item_size
    data = from_bytes(read(stored.file, first, first + (stop - start) * stored.item_size), stored.dtype)
    try:
        return finite(data).to(torch.float32, copy=True)
    except NotFiniteError as error:
        raise InvalidInputError(
            f"{name} in {model.location}/{stored.file} holds NaN or Inf; the model is broken and cannot be an expert."
        ) from error


def _truncated(tau: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """B and A of the nearest matrix of a rank, and ‖B A‖²; the singular vectors of the shorter side are one of them."""
    if not bool(tau.any()):
        return tau.new_zeros(tau.shape[0], 1), tau.new_zeros(1, tau.shape[1]), 0.0
    wide = tau.shape[0] < tau.shape[1]
    tall = tau.mT if wide else tau
    vectors = leading_vectors(tall / tau.abs().max(), rank)
    projected = tall @ vectors
    kept = _energy(projected)
    return (vectors, projected.mT, kept) if wide else (projected, vectors.mT, kept)


def _energy(array: torch.Tensor) -> float:
    """The sum of squares, in float64, made piece by piece."""
    return math.fsum(float(piece.double().square_().sum()) for piece in array.reshape(-1).split(CHUNK))
