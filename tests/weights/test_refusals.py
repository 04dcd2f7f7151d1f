"""What cannot be merged is refused in one sentence before anything is written, or aborted leaving nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import ConflictError, CycleQDError, IntegrityError, InvalidInputError, UnavailableError
from cycleqd.search.operators import Floats, Parameters
from cycleqd.search.operators.mutation import Matrix, Mutation
from cycleqd.search.operators.mutation.gaussian import Gaussian
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.compatibility import problems
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.merge import merge
from cycleqd.weights.verified import VerifiedReader
from tests.weights.models import CONFIG, TOKENIZER, Tensors, drawn, mean, opened, tensors, write_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", tensors(0))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_adapter(folder: Path, also: Callable[[], object] = lambda: None) -> None:
    """What PEFT saves; some trainers put the model's config beside it."""
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    also()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"

BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "no checkpoint folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "quantised config": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq"})),
        "quantised.*gptq",
    ),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled.*save_pretrained"),
    "gguf": (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "GGUF"),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), "no .*safetensors"),
    "adapter": (lambda f: as_adapter(f, (f / "config.json").unlink), "PEFT adapter.*merge_and_unload"),
    "adapter with a config": (as_adapter, "PEFT adapter.*merge_and_unload"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 5000), "truncated"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "truncated"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(100)), "broken safetensors header"),
    "lacks a shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
        "lacks the shard",
    ),
    "lacks a shard, alone": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model-1.safetensors")
            and (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
        ),
        "lacks the shard model-2.safetensors that its index names; fetch it again.$",
    ),
    "stale index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        "lacks the shard model-1.safetensors .* or remove the index if model.safetensors beside it is the whole model",
    ),
    "two models": (
        lambda f: (
            shutil.copy(f / "model.safetensors", f / "m-1.safetensors")
            and (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-1.safetensors"}}')
        ),
        "holds two models, model.safetensors and the shards that its index names: remove one",
    ),
    "index without a weight map": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"metadata": {}}'),
        "index.json of .* has no weight_map",
    ),
    "index of anything": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["b"]}}'),
        "index.json of .* has no weight_map",
    ),
    "weights are a pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        "model.safetensors is a pointer of Git LFS, not the file itself; run git lfs pull",
    ),
    "config is a pointer": (
        lambda f: (f / "config.json").write_text(POINTER),
        "config.json is a pointer of Git LFS, not the file itself; run git lfs pull",
    ),
    "only an optimizer": (
        lambda f: (f / "model.safetensors").rename(f / "optimizer.pt"),
        r"no \*.safetensors files \(only what training goes on from: optimizer.pt\)",
    ),
    "quantised by another tool": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(compression_config={"quant_method": "fp8"})),
        "quantised.*fp8",
    ),
    "index differs": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}'),
        "different tensors",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_folder_that_is_no_whole_model_is_refused_when_opened(base: Path, name: str) -> None:
    damage, sentence = BREAKS[name]
    damage(base)
    with pytest.raises(InvalidInputError, match=f"(?s){sentence}") as caught:
        opened(base)
    assert str(base) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_quantisation_is_none(base: Path) -> None:
    edit_json(base / "config.json", lambda config: config.update(quantization_config=None, text_config=None))
    assert opened(base).setting("vocab_size") == 48


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"model.layers.0.q.qweight": torch.zeros(4, 4, dtype=torch.int32)}, "quantised.*qweight"),
        ({"model.layers.0.q.weight": torch.zeros(4, 4, dtype=torch.uint8)}, "quantised.*U8"),
        ({"model.layers.0.q.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, "quantised.*F8_E4M3"),
    ],
)
def test_quantised_tensors_are_refused(tmp_path: Path, extra: Tensors, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        opened(write_model(tmp_path / "m", {**tensors(1), **extra}))


def other_model(folder: Path, **changes: Any) -> Path:
    """An expert that differs from the base in one respect."""
    weights = tensors(1)
    for name, value in changes.get("weights", {}).items():
        weights.pop(name) if value is None else weights.__setitem__(name, value)
    write_model(folder, weights, {**CONFIG, **changes.get("config", {})})
    if "vocab" in changes:
        (folder / "tokenizer.json").write_text(json.dumps({**TOKENIZER, "model": {"vocab": changes["vocab"]}}))
    return folder


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"config": {"architectures": ["QwenForCausalLM"]}}, "differ in architecture"),
    "setting": ({"config": {"vocab_size": 50}}, "differ in vocab_size: 50 against 48"),
    "shape": ({"weights": {"lm_head.weight": torch.zeros(50, 24).bfloat16()}}, r"shape of lm_head.*50.*48"),
    "missing": ({"weights": {"model.norm.weight": None}}, "lacks model.norm.weight"),
    "surplus": ({"weights": {"model.extra.weight": torch.zeros(2).bfloat16()}}, "has model.extra.weight"),
    "tokenizer": ({"vocab": {"a": 1, "b": 0}}, "different tokenizers.*'a' is 1 against 0"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(base: Path, tmp_path: Path, name: str) -> None:
    changes, sentence = DIFFERENCES[name]
    other = opened(other_model(tmp_path / "other", **changes))
    good = opened(write_model(tmp_path / "good", tensors(2)))
    found = problems(opened(base), [good, other])
    assert len(found) == 1 and found[0].endswith(".")
    with pytest.raises(InvalidInputError, match=sentence):
        merge(opened(base), [good, other], mean(1, 1), LocalSink(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_all_problems_are_listed_and_none_for_models_that_fit(base: Path, tmp_path: Path) -> None:
    changes = {"config": {"vocab_size": 50}, "weights": {"model.norm.weight": None}, "vocab": {"a": 3}}
    assert len(problems(opened(base), [opened(other_model(tmp_path / "bad", **changes))])) == 3
    reformatted = write_model(tmp_path / "good", tensors(1))
    (reformatted / "tokenizer.json").write_text(json.dumps(TOKENIZER, indent=3))
    assert problems(opened(base), [opened(reformatted)]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parent_with_nan_or_inf_is_named_and_nothing_is_left(base: Path, tmp_path: Path, value: float) -> None:
    weights = tensors(2)
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = value
    bad = write_model(tmp_path / "bad", weights)
    for parents in ([opened(bad)], [opened(write_model(tmp_path / "good", tensors(1))), opened(bad)]):
        with pytest.raises(InvalidInputError, match=r"up_proj.weight in .*bad/model.safetensors holds NaN or Inf"):
            merge(opened(base), parents, mean(*[1.0] * len(parents)), LocalSink(tmp_path / "out"), mutation=drawn())
        assert not list((tmp_path / "out").iterdir())


def test_a_result_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        weights = tensors(seed, torch.float16)
        weights["model.norm.weight"][0] = -60000.0 if seed else 60000.0
        write_model(tmp_path / str(seed), weights)
    with pytest.raises(InvalidInputError, match=r"model.norm.weight does not fit F16"):
        merge(
            opened(tmp_path / "0"),
            [opened(tmp_path / "1"), opened(tmp_path / "0")],
            mean(2, -1),
            LocalSink(tmp_path / "o"),
        )
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize("at", [100, 3000, -1])
def test_a_changed_byte_aborts_naming_the_file(base: Path, tmp_path: Path, at: int) -> None:
    parent = write_model(tmp_path / "parent", tensors(1))
    file = parent / "model.safetensors"
    recorded = {"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
    data = bytearray(file.read_bytes())
    good = merge(opened(base), [opened(parent, recorded)], mean(1.0), LocalSink(tmp_path / "good"))
    assert good.files
    data[at] ^= 1
    try:
        file.write_bytes(data)
        with pytest.raises(CycleQDError, match=r"model\.safetensors") as caught:
            merge(opened(base), [opened(parent, recorded)], mean(1.0), LocalSink(tmp_path / "out"))
        assert isinstance(caught.value, IntegrityError) or at == 100  # a byte of the header may break its syntax first
    finally:
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@settings(max_examples=30, deadline=None)
@given(data=st.binary(min_size=1, max_size=400), cuts=st.lists(st.integers(0, 400), max_size=8), order=st.randoms())
def test_ranges_in_any_order_and_with_gaps_give_the_files_digest(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], order: Any
) -> None:
    folder = tmp_path_factory.mktemp("f")
    (folder / "f").write_bytes(data)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    ranges = [r for r in pairwise(edges) if order.random() < 0.8]
    order.shuffle(ranges)
    for digest, good in ((hashlib.sha256(data).hexdigest(), True), ("0" * 64, False)):
        reader = VerifiedReader(LocalSource(folder, {"f": digest}))
        for start, stop in ranges:
            assert bytes(reader.read("f", start, stop)) == data[start:stop]
        if good or not ranges:
            reader.finish()
        else:
            with pytest.raises(IntegrityError, match="/f has sha256"):
                reader.finish()


def test_a_head_that_differs_from_its_tied_embedding_is_refused_and_a_copy_is_dropped(tmp_path: Path) -> None:
    weights, config = tensors(1), {**CONFIG, "tie_word_embeddings": True}
    with pytest.raises(InvalidInputError, match="tie_word_embeddings but stores a different"):
        opened(write_model(tmp_path / "a", weights, config))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model = opened(write_model(tmp_path / "b", weights, config))
    assert "lm_head.weight" not in model.tensors
    merge(model, [model], mean(1.0), LocalSink(tmp_path / "out"))
    assert "lm_head.weight" not in opened(tmp_path / "out").tensors


def test_a_file_appears_only_whole(tmp_path: Path) -> None:
    sink = LocalSink(tmp_path)
    writer = sink.create("model.safetensors", 6)
    writer.write(b"abc")
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ConflictError, match="Another process is writing"):
        sink.create("model.safetensors", 6)
    writer.write(b"def")
    assert writer.close() == hashlib.sha256(b"abcdef").hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    with pytest.raises(UnavailableError, match=r"No disk left for .*bytes are needed and .* are free"):
        LocalSink(tmp_path).create("model.safetensors", disk.f_blocks * disk.f_frsize + 1)
    assert not list(tmp_path.iterdir())


class Short(Svd):
    """Forgets a factor."""

    def factors(self, values: Parameters, matrix: Matrix) -> Floats:
        return super().factors(values, matrix)[1:]


class Double(Gaussian):
    """Computes in float64."""

    def change(self, values: Parameters, tensor: str, start: int, elements: Floats) -> Floats:
        return elements.astype("float64")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        (
            Short(),
            r"operator 'svd' gave an array of shape \(23,\) and type float32, where \(24,\) and float32 are needed",
        ),
        (Double(), r"operator 'gaussian' gave an array of shape .* and type float64"),
    ],
)
def test_a_mutation_that_gives_the_wrong_numbers_is_named(
    base: Path, tmp_path: Path, mutation: Mutation, said: str
) -> None:
    parent = write_model(tmp_path / "parent", tensors(1))
    with pytest.raises(InvalidInputError, match=said):
        merge(opened(base), [opened(parent)], mean(1.0), LocalSink(tmp_path / "out"), mutation=drawn(mutation))
    assert not list((tmp_path / "out").iterdir())
