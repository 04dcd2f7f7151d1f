"""Task vectors in the span of low-rank experts: models as cores, and the search's operators on them.

A model is one small matrix C for each matrix of the basis: τ = Q C Pᵀ. As Q and P are orthonormal, the singular values
of C are those of τ, so operators that combine task vectors or scale singular values do to cores what they do to dense
task vectors (cycleqd.weights.recipe), exactly.

What no adapter carries of experts that came as full checkpoints may be kept beside the matrices: of each such tensor a
model has Σ_k c_k τ_k over the full experts, and all that is stored of it is c.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.outside import parse_json
from cycleqd.search.operators import Drawn, Parameters
from cycleqd.search.operators.crossover import Crossover, SpanCrossover
from cycleqd.search.operators.mutation import CoreMutation, Matrix, Mutation, SpanMutation
from cycleqd.search.records import ModelRef
from cycleqd.weights.basis import Basis
from cycleqd.weights.plain_adapter import Factors
from cycleqd.weights.workers import single_threaded

_DENSE = ":dense"  # behind the name of a tensor whose coefficients are stored; no tensor's name has a colon


@dataclass(frozen=True)
class Core:
    """A model in the span.

    Attributes:
        base: Digest of the base's checkpoint.
        basis: Digest of the basis.
        matrices: C of each matrix of the basis, [a, b], float32, by the base's tensor name.
        full: The experts that came as full checkpoints, where the model keeps what no adapter carries of them.
        dense: c of each tensor that no adapter carries, [len(full)], float32, by the base's tensor name: the model has
            Σ c_k (θ_k - θ_base) of it.
    """

    base: str
    basis: str
    matrices: Mapping[str, torch.Tensor]
    full: tuple[ModelRef, ...] = ()
    dense: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file: safetensors, with the digests in its metadata."""
        names: dict[str, object] = {"base": self.base, "basis": self.basis}
        if self.full:
            names["full"] = [expert.to_json() for expert in self.full]
        tensors = {**self.matrices, **{name + _DENSE: c for name, c in self.dense.items()}}
        return save(tensors, metadata={"cycleqd": json.dumps(names, sort_keys=True)})

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Core:
        """Read what `to_bytes` wrote.

        Args:
            data: The file's content.
            where: Its address, for messages.

        Raises:
            IntegrityError: It is something else.
        """
        try:
            tensors = load(data)
            header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
            names = parse_json(header["__metadata__"]["cycleqd"])
            dense = {name.removesuffix(_DENSE): tensors.pop(name) for name in list(tensors) if name.endswith(_DENSE)}
            full = tuple(map(ModelRef.from_json, names.get("full", ())))
            return Core(str(names["base"]), str(names["basis"]), tensors, full, dense)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{where} is not a core ({error!r}); it was altered: restore it") from error

    def like(self, matrices: Mapping[str, torch.Tensor], dense: Mapping[str, torch.Tensor] | None = None) -> Core:
        """Another model of the same basis and full experts.

        Args:
            matrices: Its cores, [a, b], of any float dtype; they are rounded to float32 here.
            dense: Its coefficients, in the same way; default: this model's.

        Raises:
            InvalidInputError: One holds NaN or Inf, or is too large for float32.
        """
        kept = self.dense if dense is None else _rounded(dense)
        return Core(self.base, self.basis, _rounded(matrices), self.full, kept)


def _rounded(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stored = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"{name} would hold NaN or Inf in the child; its parents' weights are too large.")
    return stored


def project(basis: Basis, factors: Callable[[str], Factors], threads: int = 1) -> dict[str, torch.Tensor]:
    """An expert's core in a basis that spans it: (Qᵀ B)(A P), in float64, rounded once.

    Args:
        basis: The basis.
        factors: Of a matrix's name B [out, r] and A [r, in], r ≥ 0.
        threads: Matrices that are worked on at a time; changes no byte.

    Returns:
        By the base's tensor name C, [a, b], float32.
    """

    def core(name: str) -> torch.Tensor:
        (b, a), (q, p) = factors(name), basis.read(name)
        found: torch.Tensor = (q.double().T @ b.double()) @ (a.double() @ p.double())
        return found.float()

    with single_threaded(threads) as pool:
        return dict(zip(basis.tensors, pool.map(core, basis.tensors), strict=True))


def merge(parents: Sequence[Core], crossover: Drawn[Crossover]) -> Core:
    """The child of K parents: Σ c_i C_i a matrix (paper, section 3.2), in float64, rounded once to float32.

    Args:
        parents: One or more models of one basis.
        crossover: The operator and what it drew for the child.

    Raises:
        IntegrityError: The parents have different bases.
        InvalidInputError: The operator needs dense weights, or gives something else than a finite number a parent.
    """
    operator = crossover.operator
    if not isinstance(operator, SpanCrossover):
        raise InvalidInputError(
            f"crossover '{operator.kind}' works on dense weights; choose another, or set models.weights to dense"
        )
    return _combined(parents, lambda name: operator.coefficients(crossover.values, name))


def combine(models: Sequence[Core], coefficients: Sequence[float]) -> Core:
    """Σ β_k τ_k (paper, section 3.4), as `merge` computes it.

    Args:
        models: One or more models of one basis.
        coefficients: β, one a model.

    Raises:
        IntegrityError: The models have different bases.
        InvalidInputError: The coefficients are not a finite number a model.
    """
    return _combined(models, lambda name: coefficients)


def _combined(models: Sequence[Core], coefficients: Callable[[str], Sequence[float]]) -> Core:
    first = models[0]
    for model in models:
        if (model.base, model.basis, model.full) != (first.base, first.basis, first.full):
            raise IntegrityError(
                f"models of the bases {first.basis[:12]} and {model.basis[:12]} cannot be combined: they belong to"
                " different evolutions"
            )

    def summed(of_models: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: _sum([tensors[name] for tensors in of_models], coefficients(name)) for name in of_models[0]}

    return first.like(summed([model.matrices for model in models]), summed([model.dense for model in models]))


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    if len(weights) != len(tensors) or not all(map(math.isfinite, weights)):
        raise InvalidInputError(
            f"Combining {len(tensors)} models needs as many finite coefficients, not {list(weights)}."
        )
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.double()
    return total


def mutate(
    core: Core, mutation: Drawn[Mutation], threads: int = 1, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Core:
    """The model after a mutation: singular values of each core scaled (paper, section 3.3), its SVD in float64.

    What no adapter carries has no core, and stays as it is.

    Args:
        core: The merged child.
        mutation: The operator and what it drew for the child.
        threads: Matrices that are worked on at a time; changes no byte.
        shapes: Of each matrix its dense shape, [out, in]; needed by operators on cores alone (`CoreMutation`).

    Raises:
        InvalidInputError: The operator needs dense task vectors, or gives something else than a factor a direction.
    """

    def mutated(name: str) -> torch.Tensor:
        if isinstance(mutation.operator, CoreMutation):
            return _changed(name, core.matrices[name], mutation.operator, mutation.values, (shapes or {})[name])
        return _scaled(name, core.matrices[name], mutation)

    with single_threaded(threads) as pool:
        return core.like(dict(zip(core.matrices, pool.map(mutated, core.matrices), strict=True)))


def _changed(
    name: str, matrix: torch.Tensor, operator: CoreMutation, values: Parameters, shape: tuple[int, ...]
) -> torch.Tensor:
    found = operator.change_core(values, name, (shape[0], shape[1]), matrix.double().numpy())
    if found.shape != tuple(matrix.shape):
        raise InvalidInputError(
            f"mutation '{operator.kind}' gave a core of shape {found.shape} for {name}, where {tuple(matrix.shape)} is"
            " needed; correct it"
        )
    return torch.from_numpy(found)


def _scaled(name: str, matrix: torch.Tensor, mutation: Drawn[Mutation]) -> torch.Tensor:
    operator, what = mutation.operator, Matrix(name, min(matrix.shape), embedding=False)
    if not isinstance(operator, SpanMutation):
        raise InvalidInputError(
            f"mutation '{operator.kind}' works on dense weights; choose another, or set models.weights to dense"
        )
    if not operator.mutates(what) or not bool(matrix.any()):
        return matrix
    factors = torch.from_numpy(operator.factors(mutation.values, what))
    if factors.shape != (what.directions,):
        raise InvalidInputError(
            f"mutation '{operator.kind}' gave {tuple(factors.shape)} factors for {name}, where {what.directions} are"
            " needed; correct it"
        )
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    scaled: torch.Tensor = u @ ((sigma * factors).unsqueeze(1) * vt)
    return scaled


def refuse_dense(core: Core) -> None:
    """Refuse a model that is more than an adapter of its base.

    Args:
        core: The model.

    Raises:
        InvalidInputError: It keeps what no adapter carries.
    """
    if core.dense:
        raise InvalidInputError(
            "the model holds what no adapter carries (models.keep_dense), such as norms: export it as a full checkpoint"
            " with `cycleqd export MODEL FOLDER --merged`"
        )


def low_rank(basis: Basis, core: Core, rank: int | None = None) -> dict[str, Factors]:
    """The model as an adapter's factors: B A = Q C Pᵀ, at the smaller of the core's two ranks.

    Args:
        basis: The basis of the core.
        core: The model.
        rank: Cut every matrix to this rank, by its SVD in float64 (see `cut`); default: nothing is cut.

    Returns:
        By the base's tensor name B [out, r] and A [r, in], float32, r = min(a, b) or `rank` if that is smaller.

    Raises:
        InvalidInputError: The model keeps what no adapter carries.
    """
    refuse_dense(core)
    found = {}
    for name, matrix in core.matrices.items():
        q, p = basis.read(name)
        if rank is not None and rank < min(matrix.shape):
            u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
            half = sigma[:rank].sqrt()  # shared out, so that B and A are of one size
            found[name] = (
                (q.double() @ (u[:, :rank] * half)).float(),
                ((half.unsqueeze(1) * vt[:rank]) @ p.double().T).float(),
            )
        elif matrix.shape[0] < matrix.shape[1]:
            found[name] = (q, matrix @ p.T)
        else:
            found[name] = (q @ matrix, p.T.contiguous())
    return found


def cut(core: Core, rank: int) -> float:
    """What cutting every matrix to a rank leaves out: ‖τ - τ_rank‖ / ‖τ‖ (Frobenius, over all matrices), in [0, 1].

    Args:
        core: The model.
        rank: From 1.
    """
    values = [torch.linalg.svdvals(matrix.double()) for matrix in core.matrices.values()]
    total = sum(float(sigma.square().sum()) for sigma in values)
    left_out = sum(float(sigma[rank:].square().sum()) for sigma in values)
    return math.sqrt(left_out / total) if total else 0.0
