"""Merging, mutating and aggregating whole checkpoints: the formulas, the laws that hold bit for bit, the format."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import InvalidInputError
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover import Crossover, ElementCrossover
from cycleqd.search.operators.crossover.combination import LinearCombination
from cycleqd.search.operators.crossover.dare import Dare
from cycleqd.search.operators.crossover.ties import Ties
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.mutation.gaussian import Gaussian
from cycleqd.search.operators.mutation.none import NoMutation
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.aggregate import combine
from cycleqd.weights.layout import INDEX
from cycleqd.weights.local import LocalSink
from cycleqd.weights.manifest import Manifest
from cycleqd.weights.merge import merge, mutate
from tests.weights.models import drawn, loaded, manifest_of, mean, opened, tensors, write_model

MUTATIONS: list[Mutation] = [
    Svd(mode="rescale"),
    Svd(mode="additive", w_max=0.1),
    Gaussian(),
    Svd(mode="rescale", embeddings=False),
    NoMutation(),
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three experts in bf16, the base in two shards."""
    folder = tmp_path_factory.mktemp("zoo")
    for seed in range(4):
        write_model(folder / str(seed), tensors(seed), shards=2 if seed in (0, 2) else 1)
    return folder


def child(folder: Path, to: Path, omega: list[float], **options: object) -> Manifest:
    """Merge experts 1, 2, … of a zoo with these ω."""
    parents = [opened(folder / str(index + 1)) for index in range(len(omega))]
    return merge(opened(folder / "0"), parents, mean(*omega), LocalSink(to), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_child_is_the_weighted_mean_of_the_task_vectors(tmp_path: Path, dtype: torch.dtype) -> None:
    for seed in range(4):
        write_model(tmp_path / str(seed), tensors(seed, dtype))
    omega = [1.2, -0.3, 0.8]
    child(tmp_path, tmp_path / "child", omega)
    models = [loaded(tmp_path / str(seed)) for seed in range(4)]
    for name, value in loaded(tmp_path / "child").items():
        base = models[0][name].double()
        tau = sum(w * (m[name].double() - base) for w, m in zip(omega, models[1:], strict=True)) / sum(omega)
        assert value.dtype == models[0][name].dtype
        eps = torch.finfo(dtype).eps
        assert torch.allclose(value.double(), base + tau, rtol=eps, atol=1e-6), name


def test_a_combination_adds_each_layers_task_vectors_and_normalises_nothing(zoo: Path, tmp_path: Path) -> None:
    operator = LinearCombination(own="layers", layers=2)
    record = operator.record(operator.at([0.5, 1.0, -0.25, 0.25, 1.0, 0.5], 3))
    models = [opened(zoo / str(seed)) for seed in range(4)]
    merge(models[0], models[1:], Drawn(operator, record), LocalSink(tmp_path / "child"))
    base, *experts = [loaded(zoo / str(seed)) for seed in range(4)]
    child = loaded(tmp_path / "child")
    assert record["omega"] == [0.75, 0.0, 0.75] and any(".layers.0." in name for name in child)
    for name, value in child.items():
        weights = [0.5, -0.25, 1.0] if ".layers.0." in name else record["omega"]
        tau = sum(w * (e[name].double() - base[name].double()) for w, e in zip(weights, experts, strict=True))
        assert torch.allclose(value.double(), base[name].double() + tau, rtol=2**-8, atol=1e-5), name


@pytest.mark.parametrize("omega", [[1.0, 0.0], [0.3, 0.0, 0.0]])
def test_a_parent_that_has_all_the_weight_comes_out_bit_for_bit(zoo: Path, tmp_path: Path, omega: list[float]) -> None:
    child(zoo, tmp_path, omega)
    expected = loaded(zoo / "1")
    assert {k: v.view(torch.uint8).tolist() for k, v in loaded(tmp_path).items()} == {
        k: v.view(torch.uint8).tolist() for k, v in expected.items()
    }


@settings(max_examples=12, deadline=None)
@given(omega=st.lists(st.floats(0.05, 5.0), min_size=2, max_size=3), dtype=st.sampled_from(["bfloat16", "float32"]))
def test_merging_a_model_with_itself_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, omega: list[float], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("same")
    write_model(folder / "0", tensors(0, getattr(torch, dtype)))
    write_model(folder / "1", tensors(1, getattr(torch, dtype)))
    merge(opened(folder / "0"), [opened(folder / "1")] * len(omega), mean(*omega), LocalSink(folder / "out"))
    expected = loaded(folder / "1")
    assert all(torch.equal(value, expected[name]) for name, value in loaded(folder / "out").items())


def test_aggregating_one_model_with_weight_one_is_that_model(zoo: Path, tmp_path: Path) -> None:
    whole = combine(opened(zoo / "0"), [opened(zoo / "3")], [1.0], LocalSink(tmp_path / "a"))
    parent = merge(opened(zoo / "0"), [opened(zoo / "3")], mean(1.0), LocalSink(tmp_path / "b"))
    nothing = combine(opened(zoo / "0"), [], [], LocalSink(tmp_path / "c"))
    assert whole.digest == parent.digest
    assert all(torch.equal(v, loaded(zoo / "3")[k]) for k, v in loaded(tmp_path / "a").items())
    assert all(torch.equal(v, loaded(zoo / "0")[k]) for k, v in loaded(tmp_path / "c").items())
    assert nothing.digest != whole.digest


def test_task_arithmetic_is_not_normalised_and_linear_is(zoo: Path, tmp_path: Path) -> None:
    base, models = opened(zoo / "0"), [opened(zoo / "1"), opened(zoo / "2")]
    combine(base, models, [0.7, 0.7], LocalSink(tmp_path / "sum"))
    combine(base, models, [0.7, 0.7], LocalSink(tmp_path / "mean"), method="linear")
    zero, one, two = (loaded(zoo / n)["lm_head.weight"].double() for n in "012")
    total = zero + 0.7 * (one - zero) + 0.7 * (two - zero)
    assert torch.allclose(loaded(tmp_path / "sum")["lm_head.weight"].double(), total, rtol=0.008, atol=1e-6)
    assert torch.allclose(loaded(tmp_path / "mean")["lm_head.weight"].double(), (one + two) / 2, rtol=0.008, atol=1e-6)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_fused_and_separate_give_the_same_bytes_with_any_number_of_threads(
    zoo: Path, tmp_path: Path, mutation: Mutation
) -> None:
    five, six = drawn(mutation, 5), drawn(mutation, 6)
    child(zoo, tmp_path / "merged", [1.0, 0.6], threads=2)
    fused = [child(zoo, tmp_path / f"fused{n}", [1.0, 0.6], threads=n, mutation=five).digest for n in (1, 3)]
    base, merged = opened(zoo / "0"), opened(tmp_path / "merged")
    separate = mutate(base, merged, five, LocalSink(tmp_path / "two"), threads=2)
    assert fused == [separate.digest, separate.digest]
    other = child(zoo, tmp_path / "other", [1.0, 0.6], mutation=six)
    assert (other.digest == separate.digest) == (mutation.kind == "none")
    assert separate.digest == manifest_of(tmp_path / "two").digest


def test_matrices_of_one_shape_are_mutated_together_where_the_device_is_not_the_cpu(tmp_path: Path) -> None:
    """Torch takes "cpu:0" for the CPU; to the streaming code it is a device as "cuda" is."""
    from cycleqd.weights.crossover import Linear
    from cycleqd.weights.recipe import Combination

    for seed in range(3):
        weights = tensors(seed, torch.float32)
        up = weights.pop("model.layers.0.mlp.up_proj.weight")
        more = {"a.0.up.weight": up, "a.0.vector": up[0].clone(), "a.1.up.weight": up * 2, "a.2.up.weight": up * 3}
        write_model(tmp_path / str(seed), {**weights, **more})
    base = opened(tmp_path / "0")
    first, second = base.tensors["a.0.up.weight"], base.tensors["a.1.up.weight"]
    recipes = {
        device: Combination(base, Linear(lambda _: [(base, 1.0)]), drawn(), device) for device in ("cpu", "cpu:0")
    }
    assert {device: r.batches(first, second) for device, r in recipes.items()} == {"cpu": False, "cpu:0": True}
    for device in recipes:
        child(tmp_path, tmp_path / device, [1.0, 0.6], mutation=drawn(), device=device)
    order = sorted(opened(tmp_path / "cpu").tensors.values(), key=lambda t: t.start)
    ups = [number for number, tensor in enumerate(order) if tensor.name.endswith("up.weight")]
    assert ups == list(range(ups[0], ups[0] + 3)), "layers' matrices of one shape lie side by side"
    single, stacked = loaded(tmp_path / "cpu"), loaded(tmp_path / "cpu:0")
    assert single.keys() == stacked.keys()
    assert all(torch.allclose(single[name], value, atol=1e-5) for name, value in stacked.items())


def test_mutation_leaves_vectors_and_on_request_embeddings_alone(zoo: Path, tmp_path: Path) -> None:
    child(zoo, tmp_path / "plain", [1.0, 0.6])
    child(zoo, tmp_path / "mutated", [1.0, 0.6], mutation=drawn(Svd(embeddings=False)))
    plain, mutated = loaded(tmp_path / "plain"), loaded(tmp_path / "mutated")
    same = {name for name in plain if torch.equal(plain[name], mutated[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.position_ids"}


def test_shard_size_changes_the_files_but_no_tensor(zoo: Path, tmp_path: Path) -> None:
    one, many = child(zoo, tmp_path / "one", [1, 1]), child(zoo, tmp_path / "many", [1, 1], shard_size=3000)
    assert "model.safetensors" in one.files and INDEX not in one.files
    shards = [name for name in many.files if name.endswith(".safetensors")]
    assert len(shards) > 2 and INDEX in many.files
    assert all(torch.equal(v, loaded(tmp_path / "one")[k]) for k, v in loaded(tmp_path / "many").items())
    assert opened(tmp_path / "many").tensors.keys() == opened(zoo / "0").tensors.keys()


def test_a_run_with_another_shard_size_takes_over_the_folder(zoo: Path, tmp_path: Path) -> None:
    child(zoo, tmp_path, [1, 1], shard_size=3000)
    (tmp_path / ".model-00002-of-00009.safetensors.part").write_bytes(b"killed")
    (tmp_path / "notes.txt").write_text("the user's")
    written = child(zoo, tmp_path, [1, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*written.files, "notes.txt"])
    assert opened(tmp_path).tensors.keys() == opened(zoo / "0").tensors.keys()
    again = child(zoo, tmp_path, [1, 1], shard_size=3000)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*again.files, "notes.txt"])
    assert INDEX in again.files and opened(tmp_path).tensors.keys() == opened(zoo / "0").tensors.keys()


def test_the_folder_holds_what_the_base_has_and_nothing_of_its_training(zoo: Path, tmp_path: Path) -> None:
    written = child(zoo, tmp_path, [1, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(written.files)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} < set(written.files)
    assert "training_args.bin" not in written.files
    assert (tmp_path / "chat_template.jinja").read_bytes() == (zoo / "0/chat_template.jinja").read_bytes()
    assert Manifest.from_json(written.to_json()) == written == manifest_of(tmp_path)
    assert loaded(tmp_path)["model.position_ids"].tolist() == list(range(7))


def test_progress_counts_every_byte_of_the_tensors(zoo: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    child(zoo, tmp_path, [1, 1], progress=seen.append)
    assert sum(seen) == sum(t.nbytes for t in opened(zoo / "0").tensors.values())


@pytest.mark.parametrize("omega", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_coefficients_without_a_mean_are_refused(zoo: Path, tmp_path: Path, omega: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="ω"):
        merge(opened(zoo / "0"), [opened(zoo / "1"), opened(zoo / "2")], mean(*omega), LocalSink(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_coefficient_is_needed_for_every_parent(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Combining 2 models needs as many finite coefficients"):
        merge(opened(zoo / "0"), [opened(zoo / "1"), opened(zoo / "2")], mean(1.0), LocalSink(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_the_result_without_a_warning(
    tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    for seed in range(3):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / str(seed))
    child(tmp_path, tmp_path / "child", [1.0, 1.0], mutation=drawn(), shard_size=10_000)
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model, info = LlamaForCausalLM.from_pretrained(
            tmp_path / "child", dtype=torch.bfloat16, output_loading_info=True
        )
    assert not caplog.records and not any(info.values())
    stored = loaded(tmp_path / "child")
    assert ("lm_head.weight" in stored) is not tied
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.items())
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


ELEMENTS: list[Drawn[Crossover]] = [
    Drawn(Ties(density=0.3), {"omega": [1.0, 0.6]}),
    Drawn(Dare(density=0.3), {"omega": [1.0, 0.6], "seed": 3}),
]


def crossed(crossover: Drawn[Crossover], to: Path, zoo: Path, **options: object) -> Manifest:
    parents = [opened(zoo / "1"), opened(zoo / "2")]
    return merge(opened(zoo / "0"), parents, crossover, LocalSink(to), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("crossover", ELEMENTS, ids=lambda crossover: crossover.operator.kind)
def test_an_element_wise_crossover_works_on_the_whole_tensors_task_vectors(
    zoo: Path, tmp_path: Path, crossover: Drawn[Crossover]
) -> None:
    crossed(crossover, tmp_path, zoo)
    base, *parents = (loaded(zoo / str(number)) for number in range(3))
    operator = crossover.operator
    assert isinstance(operator, ElementCrossover)
    for name, value in loaded(tmp_path).items():
        if value.dtype == torch.int64:
            assert torch.equal(value, base[name])
            continue
        origin = base[name].float()
        taus = torch.stack([(parent[name].float() - origin).flatten() for parent in parents])
        tau = torch.from_numpy(operator.combine(crossover.values, name, 0, taus.numpy()))
        assert tau.any() and not tau.all()
        assert torch.equal(value, (origin + tau.view(origin.shape)).to(value.dtype))


@pytest.mark.parametrize("mutation", [None, Svd(w_max=0.1), Gaussian()], ids=str)
@pytest.mark.parametrize("crossover", ELEMENTS, ids=lambda crossover: crossover.operator.kind)
def test_element_wise_children_have_the_same_bytes_fused_or_not_and_in_pieces_of_any_size(
    zoo: Path, tmp_path: Path, crossover: Drawn[Crossover], mutation: Mutation | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = None if mutation is None else drawn(mutation, 5)
    fused = crossed(crossover, tmp_path / "fused", zoo, mutation=change, threads=1)
    monkeypatch.setattr("cycleqd.weights.stream.CHUNK", 100)
    assert crossed(crossover, tmp_path / "pieces", zoo, mutation=change, threads=3) == fused
    crossed(crossover, tmp_path / "merged", zoo)
    if change is not None:
        assert mutate(opened(zoo / "0"), opened(tmp_path / "merged"), change, LocalSink(tmp_path / "two")) == fused


def test_element_wise_crossovers_refuse_broken_weights_and_missing_ones(zoo: Path, tmp_path: Path) -> None:
    weights = tensors(2)
    weights["model.norm.weight"][3] = float("nan")
    write_model(tmp_path / "broken", weights)
    parents = [opened(zoo / "1"), opened(tmp_path / "broken")]
    for crossover in ELEMENTS:
        with pytest.raises(InvalidInputError, match=r"model\.norm\.weight in .* holds NaN or Inf"):
            merge(opened(zoo / "0"), parents, crossover, LocalSink(tmp_path / "out"))
        with pytest.raises(InvalidInputError, match="Combining 1 models needs as many finite coefficients"):
            merge(opened(zoo / "0"), parents[:1], crossover, LocalSink(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())
