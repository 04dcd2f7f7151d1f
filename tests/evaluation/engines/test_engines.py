"""The transformers engine on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Completion, Engine, Request, Sampling, transformers
from cycleqd.evaluation.engines.common import checkpoint
from cycleqd.evaluation.task import Message

MakeModel = Callable[..., Path]
CPU = engines.EngineSettings(device="cpu", threads=1)
GREEDY = Sampling(max_tokens=12)


def ask(*texts: str) -> list[list[Message]]:
    return [[{"role": "user", "content": text}] for text in texts]


def want(
    conversations: list[list[Message]], sampling: Sampling, adapter: str | None = None, group: int = 0
) -> list[Request]:
    return [Request(conversation, sampling, adapter, group) for conversation in conversations]


QUESTIONS = ask("hello", "a much longer question than the first", "x", "what is 2 + 2?", "list the files")


@pytest.fixture
def engine(make_model: MakeModel) -> Engine:
    engine = engines.create("transformers", CPU)
    engine.load(make_model(0), "0")
    return engine


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def test_auto_takes_transformers_without_cuda() -> None:
    assert engines.create("auto", CPU).name == "transformers"
    assert engines.create("vllm", CPU).name == "vllm"


def test_a_batch_gives_what_the_models_own_forward_pass_gives(engine: Engine, make_model: MakeModel) -> None:
    """Left padding and position ids: greedy decoding without cache, padding or batch, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model(0), dtype=torch.float32).eval()
    folder = checkpoint.ModelFolder.open(make_model(0), None)
    replies = engine.generate(want(QUESTIONS, GREEDY))
    for prompt, reply in zip(folder.encode(QUESTIONS), replies, strict=True):
        tokens: list[int] = []
        while len(tokens) < GREEDY.max_tokens and tokens[-1:] != [2]:
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
        assert reply == Completion(
            folder.decode(tokens, ()), "stop" if tokens[-1] == 2 else "length", len(prompt), len(tokens)
        )


def test_a_swapped_in_model_gives_what_a_fresh_engine_gives(engine: Engine, make_model: MakeModel) -> None:
    before = engine.generate(want(QUESTIONS, GREEDY))
    engine.load(make_model(1), "1")
    fresh = engines.create("transformers", CPU)
    fresh.load(make_model(1), "1")
    assert engine.generate(want(QUESTIONS, GREEDY)) == fresh.generate(want(QUESTIONS, GREEDY))
    assert engine.generate(want(QUESTIONS, GREEDY)) != before
    engine.load(make_model(0), "0")
    assert engine.generate(want(QUESTIONS, GREEDY)) == before


def test_replies_do_not_depend_on_the_batch_size_here_or_on_earlier_calls(make_model: MakeModel) -> None:
    small = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, batch_tokens=64))
    large = engines.create("transformers", CPU)
    for engine in (small, large):
        engine.load(make_model(0), "0")
    large.generate(want(ask("something else"), GREEDY))
    assert texts(small.generate(want(QUESTIONS, GREEDY))) == texts(large.generate(want(QUESTIONS, GREEDY)))


def test_sampling_repeats_with_its_seed_and_changes_with_it(engine: Engine) -> None:
    import torch

    warm = Sampling(max_tokens=12, temperature=1.0, seed=1)
    first = engine.generate(want(QUESTIONS, warm))
    torch.manual_seed(99)
    assert engine.generate(want(QUESTIONS, warm)) == first
    assert engine.generate(want(QUESTIONS, Sampling(max_tokens=12, temperature=1.0, seed=2))) != first


def test_stop_strings_end_a_reply_and_are_not_part_of_it(engine: Engine) -> None:
    whole = engine.generate(want(QUESTIONS[:1], GREEDY))[0]
    stop = whole.text[3:5]
    cut = engine.generate(want(QUESTIONS[:1], Sampling(max_tokens=12, stop=("never", stop))))[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop"
    assert cut.tokens < whole.tokens


def test_a_prompt_beyond_the_context_overflows_and_one_near_it_is_cut_short(make_model: MakeModel) -> None:
    engine = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, max_context=40))
    engine.load(make_model(0), "0")
    overhead = engine.generate(want(ask(""), GREEDY))[0].prompt_tokens
    near, beyond, short = engine.generate(want(ask("n" * (37 - overhead), "b" * (40 - overhead), "s"), GREEDY))
    assert (near.finish, near.tokens) == ("length", 3)
    assert beyond == Completion("", "overflow", 40, 0)
    assert short.tokens > 3


def test_progress_counts_every_conversation_that_was_generated(engine: Engine) -> None:
    seen: list[int] = []
    engine.generate(want(QUESTIONS, GREEDY), seen.append)
    assert sum(seen) == len(QUESTIONS)


def test_batches_stay_within_the_token_budget() -> None:
    prompts = [[0] * n for n in (1, 2, 3, 10, 90)]
    rooms = [5] * 5
    batches = list(transformers._batches(range(5), prompts, rooms, 30))
    assert batches == [[0, 1, 2], [3], [4]]


def test_a_model_that_runs_out_of_memory_is_an_error_after_one_smaller_try(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []

    def out_of_memory(prompts: object, sampling: object, budget: int, progress: object) -> list[Completion]:
        budgets.append(budget)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(engine, "_generate", out_of_memory)
    with pytest.raises(EvaluationError, match=r"out of memory on cpu .* lower evaluation\.batch_tokens"):
        engine.generate(want(QUESTIONS, GREEDY))
    assert budgets == [16384, 8192]


def test_generating_without_a_model_is_refused() -> None:
    with pytest.raises(EvaluationError, match="load one before"):
        engines.create("transformers", CPU).generate(want(QUESTIONS, GREEDY))


def test_an_untied_checkpoint_in_a_tied_model_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = copy(make_model(0), tmp_path)
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(
        EvaluationError, match=r"says tie_word_embeddings but stores a different lm_head.weight; set it to false"
    ):
        engines.create("transformers", CPU).load(folder, "tied")


def test_a_tied_model_swaps(make_model: MakeModel) -> None:
    one, other = make_model(0, tie_word_embeddings=True), make_model(1, tie_word_embeddings=True)
    swapped, fresh = engines.create("transformers", CPU), engines.create("transformers", CPU)
    swapped.load(one, "0")
    swapped.load(other, "1")
    fresh.load(other, "1")
    assert swapped.generate(want(QUESTIONS, GREEDY)) == fresh.generate(want(QUESTIONS, GREEDY))


@pytest.fixture
def mixtures(make_model: MakeModel, tmp_path: Path) -> list[Path]:
    """Two mixtures of experts: stored one by one, fused in the model."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    for seed in range(2):
        torch.manual_seed(seed)
        model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, initializer_range=0.2, max_position_embeddings=256))
        (tmp_path / str(seed)).mkdir()
        folder = copy(make_model(0), tmp_path / str(seed))
        model.save_pretrained(folder)
    return [tmp_path / "0", tmp_path / "1"]


def test_models_that_are_converted_while_loading_are_swapped_too(mixtures: list[Path]) -> None:
    swapped, fresh = engines.create("transformers", CPU), engines.create("transformers", CPU)
    swapped.load(mixtures[0], "0")
    before = swapped.generate(want(QUESTIONS, GREEDY))
    swapped.load(mixtures[1], "1")
    fresh.load(mixtures[1], "1")
    assert swapped.generate(want(QUESTIONS, GREEDY)) == fresh.generate(want(QUESTIONS, GREEDY)) != before
    with pytest.raises(EvaluationError, match=r"converted while they are loaded .* set evaluation\.engine to tr"):
        engines.create("vllm", CPU).load(mixtures[0], "0")


def test_stored_buffers_and_bookkeeping_do_not_keep_a_model_from_being_swapped_in(
    engine: Engine, make_model: MakeModel, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = copy(make_model(1), tmp_path)
    file, buffer = folder / "model.safetensors", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    save_file(load_file(file) | buffer, file, metadata={"format": "pt"})
    change_config(folder, unsloth_version="1", attention_dropout=0.1, max_position_embeddings=200, head_dim=32)
    fresh = engines.create("transformers", CPU)
    fresh.load(make_model(1), "1")
    engine.load(folder, "stored")
    assert engine.generate(want(QUESTIONS, GREEDY)) == fresh.generate(want(QUESTIONS, GREEDY))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_missing_or_foreign_tensor_is_refused_by_name(make_model: MakeModel, tmp_path: Path, swapped: bool) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(make_model(0), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.other"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    engine = engines.create("transformers", CPU)
    if swapped:
        engine.load(make_model(1), "1")
    with pytest.raises(EvaluationError, match=r"2 tensors do not match .*'model.layers.0.mlp.up_proj.weight'"):
        engine.load(folder, "0")


def test_another_architecture_is_refused(engine: Engine, make_model: MakeModel) -> None:
    with pytest.raises(EvaluationError, match=r"in intermediate_size \(128 against 256\); all models of"):
        engine.load(make_model(1, intermediate_size=128), "wide")


def test_no_chat_template_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = copy(make_model(0), tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="no chat template"):
        engines.create("transformers", CPU).load(folder, "0")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="not a usable model folder"):
        engines.create("transformers", CPU).load(tmp_path, "0")


def copy(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
