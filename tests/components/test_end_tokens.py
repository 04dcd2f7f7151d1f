"""Where replies end: a child that equals an expert stops where the expert stops, dense, in the span and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cycleqd.errors import InvalidInputError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Request, Sampling
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.task import Message
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.place import Place
from cycleqd.storage import layout
from cycleqd.storage.adapters import adapter_folders
from cycleqd.storage.cores import cores
from cycleqd.storage.evolution import manifest, model_ref
from cycleqd.storage.making import write_full, write_peft
from cycleqd.storage.models import fetched, open_model
from cycleqd.storage.objects import Store
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge
from tests.adapters import merged
from tests.evolution import EXPERTS, Evolution, write_adapters

Make = Callable[..., Evolution]
PLACE = Place(cache_size="10MB")
LENGTH = 24
ASKED: list[Message] = [{"role": "user", "content": "one 37"}]


def started() -> Engine:
    return engines.create("transformers", EngineSettings("float32", threads=1, device="cpu"))


def reply(engine: Engine, adapter: str | None = None) -> Completion:
    (found,) = engine.generate([Request(ASKED, Sampling(LENGTH), adapter)])
    return found


def loaded(folder: Path) -> Completion:
    engine = started()
    engine.load(folder, str(folder))
    return reply(engine)


def ending_early(folder: Path) -> int:
    """A token that a model writes in the middle of its reply, made its end token in its generation config."""
    from transformers import AutoModelForCausalLM

    assert loaded(folder).tokens == LENGTH
    (prompt,) = ModelFolder.open(folder, None).encode([ASKED])
    written = AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([prompt]), max_new_tokens=LENGTH)
    token = int(written[0, len(prompt) + 5])
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, token]}))
    return token


def ends(store: Store, model: str) -> set[int]:
    with fetched(store, PLACE, model) as folder:
        return set(ModelFolder.open(folder, None).end_tokens)


def test_a_dense_child_stops_where_the_expert_does(evolution: Make, tiny_models: Path, tmp_path: Path) -> None:
    for name in ("base", *EXPERTS):
        shutil.copytree(tiny_models / name, tmp_path / name)
    token = ending_early(tmp_path / "a")
    alone = loaded(tmp_path / "a")
    assert alone.finish == "stop" and alone.tokens < LENGTH
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "b" / file).unlink()  # it gets the base's
    experts = {name: {"path": str(tmp_path / name)} for name in EXPERTS}
    made = evolution("ends", models={"base": str(tmp_path / "base"), "experts": experts})
    made.seed()
    store = made.store
    assert {frozenset(ends(store, m)) for m in ("base", "expert-a", "expert-b", "expert-c")} == {frozenset({2, token})}
    assert json.loads((tmp_path / "b/generation_config.json").read_text())["eos_token_id"] == 2, (
        "the user's is left alone"
    )
    base, expert = (open_model(store, model_ref(store, model)) for model in ("base", "expert-a"))
    merge(base, [expert], Drawn(Mean(), {"omega": [1.0]}), LocalSink(tmp_path / "child"))
    assert loaded(tmp_path / "child") == alone


def test_what_ends_alike_is_copied_as_it_is(evolution: Make, tiny_models: Path) -> None:
    made = evolution("alike")
    made.seed()
    for model, folder in (("base", "base"), ("expert-a", "a")):
        file = (tiny_models / folder / "generation_config.json").read_bytes()
        assert made.store.get(f"{layout.checkpoint(model)}/generation_config.json") == file


@pytest.fixture
def with_tokenizers(tiny_models: Path, tmp_path: Path) -> Path:
    """The base and adapters, expert a with a tokenizer whose end token is one that it writes."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    write_adapters(tiny_models, folder)
    adapter = Adapter("a", folder / "a")
    full = merged(tiny_models / "base", adapter, tmp_path / "alone")
    token = ending_early(full)
    tokenizer = ModelFolder.open(full, None).tokenizer
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    tokenizer.save_pretrained(folder / "a")
    return folder


def test_a_child_in_the_span_stops_where_the_expert_does(
    evolution: Make, with_tokenizers: Path, tmp_path: Path
) -> None:
    alone = loaded(tmp_path / "alone")
    assert alone.finish == "stop" and alone.tokens < LENGTH
    made = evolution("spanned-ends", models={"experts": {n: {"path": str(with_tokenizers / n)} for n in EXPERTS}})
    made.seed()
    made.basis()
    store = made.store
    assert "tokenizer.json" in manifest(store, "source-a").files
    engine, recorded = started(), {"expert-a": manifest(store, "expert-a")}
    with adapter_folders(store, PLACE, recorded, "float32", tmp_path) as folders, fetched(store, PLACE, "base") as base:
        engine.adapt([Adapter("child", folders["expert-a"])])
        engine.load(base, "base")
        assert reply(engine, "child") == alone
    (core,) = cores(store, [model_ref(store, "expert-a")])
    write_full(store, PLACE, "expert-a", core, LocalSink(tmp_path / "full"), 10**9)
    assert loaded(tmp_path / "full") == alone
    written = write_peft(store, PLACE, core, LocalSink(tmp_path / "peft"), str(tmp_path / "base"), None)
    assert set(written.files) == {file.name for file in (tmp_path / "peft").iterdir()}
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "peft" / file).read_bytes() == store.get(f"{layout.checkpoint('base')}/{file}")
    assert ends(store, "base") == set(
        json.loads((tmp_path / "peft/generation_config.json").read_text())["eos_token_id"]
    )


def test_an_exported_adapter_is_loaded_with_its_tokenizer_by_peft(
    evolution: Make, with_tokenizers: Path, tiny_models: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    made = evolution("exported", models={"experts": {n: {"path": str(with_tokenizers / n)} for n in EXPERTS}})
    made.seed()
    made.basis()
    (core,) = cores(made.store, [model_ref(made.store, "expert-a")])
    write_peft(made.store, PLACE, core, LocalSink(tmp_path / "peft"), str(tiny_models / "base"), None)
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    mine, base = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "peft", tiny_models / "base"))
    assert mine.apply_chat_template(ASKED) == base.apply_chat_template(ASKED)


@pytest.mark.parametrize(("engine", "refused"), [("transformers", True), ("mine.py:Engine", False)])
def test_a_base_without_a_template_is_refused_before_anything_is_copied(
    evolution: Make, with_tokenizers: Path, tiny_models: Path, tmp_path: Path, engine: str, refused: bool
) -> None:
    from cycleqd.storage.frozen import adopt
    from cycleqd.storage.staging import open_inputs

    shutil.copytree(tiny_models / "base", tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").unlink()
    (with_tokenizers / "a/chat_template.jinja").unlink()
    experts = {name: {"path": str(with_tokenizers / name)} for name in EXPERTS}
    models = {"base": str(tmp_path / "base"), "experts": experts}
    made = evolution("unprompted", models=models, evaluation={"engine": engine})
    config = adopt(made.store, made.config)
    if not refused:
        assert "source-a" in open_inputs(made.store.client, config)
        return
    with pytest.raises(InvalidInputError, match=r"base has no chat template, .* and no expert has one; put"):
        made.seed()
    assert made.store.list("models") == {}
