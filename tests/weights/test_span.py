"""Cores: what operators do to them is what they do to dense task vectors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover.combination import LinearCombination
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.operators.mutation.gaussian import Gaussian
from cycleqd.search.operators.mutation.none import NoMutation
from cycleqd.search.operators.mutation.span_gaussian import SpanGaussian
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.search.records import ModelRef
from cycleqd.weights.basis import Basis, Factors, open_basis, span, write_basis
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.mutation import svd_rescale
from cycleqd.weights.span import Core, combine, low_rank, merge, mutate, project

NAMES = ["a.weight", "b.weight", "c.weight"]
SHAPES = {"a.weight": (24, 32), "b.weight": (40, 16), "c.weight": (6, 64)}


def factors(seed: int, rank: int, names: list[str] = NAMES) -> dict[str, Factors]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(out, r, generator=rng), torch.randn(r, inputs, generator=rng))
        for name, (out, inputs) in SHAPES.items()
        for r in [rank if name in names else 0]
    }


EXPERTS = [factors(1, 3), factors(2, 4, NAMES[:2]), factors(3, 2)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Basis, list[Core]]:
    folder = tmp_path_factory.mktemp("basis")
    manifest = write_basis(NAMES, lambda name: [e[name] for e in EXPERTS], LocalSink(folder), 2)
    basis = open_basis(LocalSource(folder))
    return basis, [Core("base", manifest.digest, project(basis, expert.__getitem__)) for expert in EXPERTS]


def dense(basis: Basis, core: Core, name: str) -> torch.Tensor:
    q, p = basis.read(name)
    return q.double() @ core.matrices[name].double() @ p.T.double()


def close(found: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-5) -> bool:
    return float((found.double() - wanted.double()).norm()) <= limit * max(float(wanted.norm()), 1e-30)


def test_experts_are_exactly_in_the_span(built: tuple[Basis, list[Core]]) -> None:
    basis, cores = built
    for expert, core in zip(EXPERTS, cores, strict=True):
        for name in NAMES:
            b, a = expert[name]
            assert close(dense(basis, core, name), b @ a, 1e-6)


def test_the_basis_is_orthonormal_and_no_larger_than_needed(built: tuple[Basis, list[Core]]) -> None:
    basis, _ = built
    assert basis.shapes == {"a.weight": (9, 9), "b.weight": (9, 9), "c.weight": (5, 5)}
    assert {name: (q.shape[0], p.shape[0]) for name, (q, p) in basis.tensors.items()} == SHAPES
    for name in NAMES:
        for side in basis.read(name):
            assert torch.allclose(side.T @ side, torch.eye(side.shape[1]), atol=1e-6)


def test_directions_of_dependent_experts_are_dropped() -> None:
    (b, a), (other, row) = factors(1, 3)["a.weight"], factors(2, 3)["a.weight"]
    q, p = span([(b, a), (2 * b, a), (other, row), (b[:, :0], a[:0])])
    assert (q.shape[1], p.shape[1]) == (6, 6)
    assert close(q @ (q.T @ b @ a @ p) @ p.T, b @ a)


def test_a_small_factor_beside_a_large_one_hides_nothing() -> None:
    (b, a), (other, row) = factors(1, 3)["a.weight"], factors(2, 3)["a.weight"]
    q, p = span([(b * 1e6, a * 1e-6), (other, row)])
    assert (q.shape[1], p.shape[1]) == (6, 6)


def test_threads_change_no_byte(tmp_path_factory: pytest.TempPathFactory, built: tuple[Basis, list[Core]]) -> None:
    sink = LocalSink(tmp_path_factory.mktemp("threads"))
    found = write_basis(NAMES, lambda name: [e[name] for e in EXPERTS], sink, 3)
    assert found.digest == built[1][0].basis
    for threads in (1, 3):
        assert Core("", "", project(built[0], EXPERTS[0].__getitem__, threads)).to_bytes() == replaced(built[1][0])


def replaced(core: Core) -> bytes:
    return dataclasses.replace(core, base="", basis="").to_bytes()


def test_bytes_are_read_back(built: tuple[Basis, list[Core]]) -> None:
    core = built[1][0]
    again = Core.from_bytes(core.to_bytes(), "s3://b/k")
    assert (again.base, again.basis) == (core.base, core.basis) and again.to_bytes() == core.to_bytes()
    with pytest.raises(IntegrityError, match="s3://b/k is not a core"):
        Core.from_bytes(core.to_bytes()[:-3], "s3://b/k")


def test_a_core_without_dense_parts_has_the_bytes_that_it_always_had(built: tuple[Basis, list[Core]]) -> None:
    core = built[1][0]
    names = json.dumps({"base": core.base, "basis": core.basis}, sort_keys=True)
    assert core.to_bytes() == save(dict(core.matrices), metadata={"cycleqd": names})


def kept_dense(core: Core, *coefficients: float) -> Core:
    full = (ModelRef("source-a", "1" * 64), ModelRef("source-c", "2" * 64))
    names = ("model.norm.weight", "a.weight")  # the second is a matrix of the basis, too
    return dataclasses.replace(core, full=full, dense=dict.fromkeys(names, torch.tensor(coefficients)))


def test_what_no_adapter_carries_is_combined_and_not_mutated(built: tuple[Basis, list[Core]]) -> None:
    units = ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))
    one, other, third = (kept_dense(core, *unit) for core, unit in zip(built[1], units, strict=True))
    drawn = Drawn(Mean(), {"omega": [1.0, 1.0, 2.0]})
    merged = merge([one, other, third], drawn)
    child = mutate(Core.from_bytes(merged.to_bytes(), "merged"), Drawn(Svd(), {"seed": 1}))
    again = Core.from_bytes(child.to_bytes(), "child")
    assert again.full == one.full and again.to_bytes() == child.to_bytes()
    assert {name: c.tolist() for name, c in again.dense.items()} == {key: [0.25, 0.5] for key in one.dense}
    assert not torch.equal(again.matrices["a.weight"], merged.matrices["a.weight"])
    alone = merge(built[1], drawn)
    assert all(torch.equal(merged.matrices[name], alone.matrices[name]) for name in NAMES)
    assert combine([one, third], [0.5, -1.0]).dense["a.weight"].tolist() == [0.5, -1.0]
    with pytest.raises(IntegrityError, match="belong to different evolutions"):
        combine([one, built[1][1]], [0.5, 0.5])
    with pytest.raises(InvalidInputError, match=r"no adapter carries \(models.keep_dense\).*--merged"):
        low_rank(built[0], child)


@settings(max_examples=25, deadline=None)
@given(omega=st.lists(st.floats(-2, 2), min_size=3, max_size=3), seed=st.integers(0, 99), rescale=st.booleans())
def test_operators_do_to_cores_what_they_do_to_dense_task_vectors(
    built: tuple[Basis, list[Core]], omega: list[float], seed: int, rescale: bool
) -> None:
    if abs(sum(omega)) < 0.1:
        return
    basis, cores = built
    child = merge(cores, Drawn(Mean(), {"omega": omega}))
    svd = Svd(mode="rescale" if rescale else "additive")
    mutated = mutate(child, Drawn(svd, {"seed": seed}))
    for name in NAMES:
        tau = sum((w / sum(omega) * dense(basis, c, name) for w, c in zip(omega, cores, strict=True)), torch.zeros(1))
        assert close(dense(basis, child, name), tau)
        full = min(SHAPES[name])
        w = svd.factors({"seed": seed}, dataclasses.replace(_matrix(name), directions=full))
        # ranks below the dense one: the core has the first factors, for the largest singular values
        expected = svd_rescale(tau.float(), torch.from_numpy(np.asarray(w)))
        assert close(dense(basis, mutated, name), expected, 2e-3)


def test_a_combination_of_cores_is_one_of_task_vectors(built: tuple[Basis, list[Core]]) -> None:
    basis, cores = built
    operator = LinearCombination()
    child = merge(cores, Drawn(operator, operator.record(operator.at([0.9, -0.1, 0.6], 3))))
    for name in NAMES:
        taus = [dense(basis, core, name) for core in cores]
        assert close(dense(basis, child, name), 0.9 * taus[0] - 0.1 * taus[1] + 0.6 * taus[2])


def _matrix(name: str):  # type: ignore[no-untyped-def]
    from cycleqd.search.operators.mutation import Matrix

    return Matrix(name, 1, embedding=False)


def test_factors_of_fewer_directions_are_a_prefix() -> None:
    svd = Svd()
    few = svd.factors({"seed": 7}, dataclasses.replace(_matrix("a.weight"), directions=5))
    many = svd.factors({"seed": 7}, dataclasses.replace(_matrix("a.weight"), directions=50))
    assert (many[:5] == few).all()


def test_gaussian_noise_on_cores_has_the_norm_of_dense_noise(built: tuple[Basis, list[Core]]) -> None:
    core, shapes = built[1][0], SHAPES
    zero = core.like({name: 0 * matrix for name, matrix in core.matrices.items()})
    found = mutate(zero, Drawn(SpanGaussian(sigma=0.01), {"seed": 3}), shapes=shapes)
    assert found.to_bytes() == mutate(zero, Drawn(SpanGaussian(sigma=0.01), {"seed": 3}), 3, shapes).to_bytes()
    squares = []
    for seed in range(200):
        noisy = mutate(zero, Drawn(SpanGaussian(sigma=0.01), {"seed": seed}), shapes=shapes)
        squares.append(float(noisy.matrices["a.weight"].square().sum()))
    assert np.mean(squares) == pytest.approx(0.01**2 * 24 * 32, rel=0.05)
    plain = mutate(zero, Drawn(SpanGaussian(sigma=0.01, scale="core"), {"seed": 3}), shapes=shapes)
    ratio = found.matrices["a.weight"] / plain.matrices["a.weight"]
    assert torch.allclose(ratio, torch.full_like(ratio, (24 * 32 / 81) ** 0.5), rtol=1e-4)


def test_no_mutation_and_one_parent_give_the_parent_bit_for_bit(built: tuple[Basis, list[Core]]) -> None:
    core = built[1][0]
    alone = merge([core, built[1][1]], Drawn(Mean(), {"omega": [1.0, 0.0]}))
    assert alone.to_bytes() == core.to_bytes()
    assert mutate(core, Drawn(NoMutation(), {})).to_bytes() == core.to_bytes()


def test_threads_of_a_mutation_change_no_byte(built: tuple[Basis, list[Core]]) -> None:
    drawn = Drawn(Svd(), {"seed": 3})
    assert mutate(built[1][0], drawn, 1).to_bytes() == mutate(built[1][0], drawn, 3).to_bytes()


def test_factors_are_a_low_rank_adapter(built: tuple[Basis, list[Core]]) -> None:
    basis, cores = built
    child = combine(cores, [0.5, 0.25, 1.0])
    for name, (b, a) in low_rank(basis, child).items():
        assert b.shape[1] == min(child.matrices[name].shape) and close(b @ a, dense(basis, child, name))


def test_refusals(built: tuple[Basis, list[Core]]) -> None:
    core = built[1][0]
    with pytest.raises(InvalidInputError, match="'gaussian' works on dense weights"):
        mutate(core, Drawn(Gaussian(), {"seed": 1}))
    with pytest.raises(IntegrityError, match="different evolutions"):
        combine([core, dataclasses.replace(core, basis="other")], [1, 1])
    with pytest.raises(InvalidInputError, match="finite coefficients"):
        combine([core], [float("nan")])
    with pytest.raises(InvalidInputError, match="NaN or Inf"):
        combine([core], [1e300])
