"""Adapters in the transformers engine: what they compute, what shares a batch, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Request, Sampling
from tests.adapters import merged, write_adapter
from tests.evaluation.engines.test_engines import CPU, GREEDY, QUESTIONS, ask, want

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def adapters(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Three, of different ranks, the last on two kinds of modules only."""
    folder, model = tmp_path_factory.mktemp("adapters"), make_model(0)
    return [
        write_adapter(folder / "0", model, 0, rank=4),
        write_adapter(folder / "1", model, 1, rank=8),
        write_adapter(folder / "2", model, 2, rank=8, targets=("q_proj", "down_proj")),
    ]


def started(make_model: MakeModel, adapters: list[Adapter], **settings: object) -> Engine:
    engine = engines.create("transformers", EngineSettings(device="cpu", threads=1, **settings))  # type: ignore[arg-type]
    engine.adapt(adapters)
    engine.load(make_model(0), "0")
    return engine


def test_an_adapter_gives_what_the_model_gives_with_it_merged_in(
    make_model: MakeModel, adapters: list[Adapter], tmp_path: Path
) -> None:
    engine = started(make_model, adapters)
    base = engine.generate(want(QUESTIONS, GREEDY))
    for number, adapter in enumerate(adapters):
        plain = engines.create("transformers", CPU)
        plain.load(merged(make_model(0), adapter, tmp_path / str(number)), adapter.digest)
        found = engine.generate(want(QUESTIONS, GREEDY, adapter.digest))
        assert found == plain.generate(want(QUESTIONS, GREEDY))
        assert found != base


def test_the_base_gives_the_same_before_between_and_after_adapters(
    make_model: MakeModel, adapters: list[Adapter]
) -> None:
    alone = engines.create("transformers", CPU)
    alone.load(make_model(0), "0")
    expected = alone.generate(want(QUESTIONS, GREEDY))
    engine = started(make_model, adapters)
    assert engine.generate(want(QUESTIONS, GREEDY)) == expected
    both = engine.generate([*want(QUESTIONS, GREEDY, adapters[0].digest), *want(QUESTIONS, GREEDY)])
    assert both[len(QUESTIONS) :] == expected
    engine.adapt([])
    engine.load(make_model(1), "1")
    engine.load(make_model(0), "0")
    assert engine.generate(want(QUESTIONS, GREEDY)) == expected


ITEMS = ask(*(f"question {number} {'long ' * (number % 4)}" for number in range(6)))


@pytest.fixture(scope="module")
def small(make_model: MakeModel, adapters: list[Adapter]) -> Engine:
    """An engine whose batches hold about three of the items."""
    return started(make_model, adapters, batch_tokens=300)


@pytest.fixture(scope="module")
def alone(small: Engine, adapters: list[Adapter]) -> dict[tuple[str | None, float], list[Completion]]:
    """What each child replies when nothing is asked beside it, greedily and sampled."""
    return {
        (digest, temperature): small.generate(want(ITEMS, sampled(temperature), digest))
        for digest in [None, *(adapter.digest for adapter in adapters)]
        for temperature in (0.0, 1.0)
    }


def sampled(temperature: float) -> Sampling:
    return Sampling(max_tokens=6, temperature=temperature)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_replies_do_not_depend_on_the_children_beside(
    small: Engine, alone: dict[tuple[str | None, float], list[Completion]], data: st.DataObject
) -> None:
    """Children shuffled, removed and asked in any number of calls: each one's replies are the same, to the bit."""
    pairs = data.draw(st.lists(st.sampled_from(sorted(alone, key=str)), unique=True, min_size=1))
    calls = data.draw(st.lists(st.integers(0, 2), min_size=len(pairs), max_size=len(pairs)))
    for call in sorted(set(calls)):
        members = [(number, pair) for number, pair in enumerate(pairs) if calls[number] == call]
        rows = [
            (pair, i, Request(item, sampled(pair[1]), pair[0], number))
            for number, pair in members
            for i, item in enumerate(ITEMS)
        ]
        if data.draw(st.booleans()):
            rows.sort(key=lambda row: row[1])  # sample by sample instead of child by child
        for (pair, i, _), found in zip(rows, small.generate([row[2] for row in rows]), strict=True):
            assert found == alone[pair][i]


@pytest.fixture
def broken(adapters: list[Adapter], tmp_path: Path) -> Iterator[Adapter]:
    """A copy that may be changed."""
    for file in adapters[0].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    yield Adapter("broken", tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_alpha": 16}, "lora_alpha or target_modules of the adapter are not in the plain form"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern of the adapter are not in the plain form"),
        ({"use_dora": True}, "use_dora of the adapter are not in the plain form"),
        ({"r": 2, "lora_alpha": 2}, "does not hold pairs"),
        ({"r": None}, "not a usable adapter folder"),
    ],
)
def test_another_form_is_refused(
    make_model: MakeModel, broken: Adapter, changes: dict[str, object], sentence: str
) -> None:
    file = broken.folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(EvaluationError, match=sentence):
        started(make_model, [broken])


def test_tensors_without_their_pair_or_with_foreign_names_are_refused(make_model: MakeModel, broken: Adapter) -> None:
    from safetensors.torch import load_file, save_file

    file = broken.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, other in (("lora_A", "lora_magnitude"), ("lora_B", "lora_bias")):
        key = f"base_model.model.model.layers.0.mlp.up_proj.{name}.weight"
        save_file({k.replace(name, other) if k == key else k: v for k, v in tensors.items()}, file)
        with pytest.raises(EvaluationError, match=r"does not hold pairs .*model.layers.0.mlp.up_proj"):
            started(make_model, [broken])
    file.unlink()
    with pytest.raises(EvaluationError, match="not a usable adapter folder"):
        started(make_model, [broken])


def test_an_adapter_of_another_base_is_refused(make_model: MakeModel, adapters: list[Adapter], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", make_model(0, intermediate_size=128), 0)
    engine = started(make_model, [other])
    with pytest.raises(EvaluationError, match=r"6 modules are not linear layers .*'model.layers.0.mlp.down_proj'"):
        engine.generate(want(QUESTIONS, GREEDY, other.digest))
    with pytest.raises(EvaluationError, match="there is no adapter"):
        engine.generate(want(QUESTIONS, GREEDY, adapters[0].digest))
