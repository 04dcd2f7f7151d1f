"""The vLLM engine on tiny models. One start serves the whole file (about 20 seconds on two cores)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Completion, Sampling
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.engines.vllm import VllmEngine, _number
from cycleqd.evaluation.task import Message
from tests.adapters import write_adapter
from tests.evaluation.engines.test_engines import QUESTIONS, ask, change_config, copy, want

MakeModel = Callable[..., Path]
SETTINGS = engines.EngineSettings(threads=1, max_context=200)
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def adapters(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Of different ranks, neither of them one of vLLM's, the last on two kinds of modules only."""
    folder, model = tmp_path_factory.mktemp("adapters"), make_model(0)
    return [
        write_adapter(folder / "0", model, 0, rank=4),
        write_adapter(folder / "1", model, 1, rank=12),
        write_adapter(folder / "2", model, 2, rank=12, targets=("q_proj", "down_proj")),
    ]


@pytest.fixture(scope="module")
def engine(make_model: MakeModel, adapters: list[Adapter]) -> Iterator[VllmEngine]:
    """Started with room for adapters; models are swapped in it as in one without."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: pip install --no-deps -r requirements/no-deps.txt")
    engine = VllmEngine(SETTINGS)
    engine.adapt(adapters)
    engine.load(make_model(0), "0")
    yield engine
    engine.close()


def transformers_on(folder: Path, questions: list[list[Message]], sampling: Sampling) -> list[Completion]:
    engine = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, max_context=200))
    engine.load(folder, "")
    return engine.generate(want(questions, sampling))


@pytest.mark.parametrize("seed", [0, 1, 2, 0])
def test_every_model_swapped_in_gives_the_tokens_of_a_fresh_transformers_engine(
    engine: VllmEngine, make_model: MakeModel, seed: int
) -> None:
    """In float32 both engines agree to the token, so this proves the swap and the agreement at once."""
    engine.load(make_model(seed), str(seed))
    assert engine.generate(want(QUESTIONS, GREEDY)) == transformers_on(make_model(seed), QUESTIONS, GREEDY)


def test_the_read_back_sees_that_other_weights_are_loaded(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    (same,) = engine._llm.collective_rpc("differing_weights", args=(str(make_model(0)),))
    (other,) = engine._llm.collective_rpc("differing_weights", args=(str(make_model(1)),))
    assert same == []
    assert sorted(other) == sorted(
        ["model.embed_tokens.weight", "lm_head.weight"]
        + [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("gate_up_proj", "down_proj")]
        + [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("qkv_proj", "o_proj")]
    )


def test_a_merged_and_mutated_checkpoint_loads(engine: VllmEngine, make_model: MakeModel, tmp_path: Path) -> None:
    from cycleqd.weights.checkpoint import open_checkpoint
    from cycleqd.weights.local import LocalSink, LocalSource
    from cycleqd.weights.merge import merge
    from tests.weights.models import drawn, mean

    base, first, second = (open_checkpoint(LocalSource(make_model(seed))) for seed in (0, 1, 2))
    merge(base, [first, second], mean(0.6, 0.4), LocalSink(tmp_path), mutation=drawn(seed=3), shard_size=500_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    engine.load(tmp_path, "child")
    assert engine.generate(want(QUESTIONS, GREEDY)) == transformers_on(tmp_path, QUESTIONS, GREEDY)


def test_stop_strings_and_the_context_limit_work_as_in_transformers(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    whole = engine.generate(want(QUESTIONS[:1], GREEDY))[0]
    stop = next(letter for letter in whole.text[2:] if letter.isascii())  # vLLM looks at whole characters only
    stopping = Sampling(max_tokens=16, stop=("never", stop))
    long = ask("hello", "n" * 170, "b" * 200)
    replies = engine.generate(want(long, stopping))
    assert replies == transformers_on(make_model(0), long, stopping)
    assert [reply.finish for reply in replies] == ["stop", "length", "overflow"]


def test_sampling_repeats_with_its_seed_and_changes_with_it(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    warm = Sampling(max_tokens=12, temperature=1.0, seed=1)
    first = engine.generate(want(QUESTIONS, warm))
    engine.reset()
    assert engine.generate(want(QUESTIONS, warm)) == first
    assert engine.generate(want(QUESTIONS, Sampling(max_tokens=12, temperature=1.0, seed=2))) != first


def test_gpus_divide_a_model_and_the_settings_of_the_user_are_vllms(make_model: MakeModel) -> None:
    def arguments(gpus: int, **own: object) -> dict[str, object]:
        settings = replace(SETTINGS, gpus=gpus, arguments=own)
        return VllmEngine(settings).arguments(ModelFolder.open(make_model(0), None))

    assert "tensor_parallel_size" not in arguments(1)
    found = arguments(2, max_num_seqs=3, enforce_eager=False)
    assert (found["tensor_parallel_size"], found["max_num_seqs"], found["enforce_eager"]) == (2, 3, False)
    with pytest.raises(EvaluationError, match=r"its 4 attention heads cannot be divided among 3 GPUs"):
        arguments(3)


def test_progress_counts_every_conversation(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    seen: list[int] = []
    engine.generate(want(QUESTIONS, GREEDY), seen.append)
    assert sum(seen) == len(QUESTIONS)


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_engine_lives_on(
    engine: VllmEngine, make_model: MakeModel, tmp_path: Path
) -> None:
    engine.load(make_model(0), "0")
    tied = copy(make_model(1), tmp_path)
    change_config(tied, tie_word_embeddings=True)
    for folder in (make_model(1, intermediate_size=128), tied):
        with pytest.raises(
            EvaluationError, match=r"need one architecture|says tie_word_embeddings but stores a different"
        ):
            engine.load(folder, "misfit")
        assert len(engine.generate(want(QUESTIONS, GREEDY))) == len(QUESTIONS)


def test_children_in_one_batch_give_the_tokens_of_the_transformers_engine(
    engine: VllmEngine, make_model: MakeModel, adapters: list[Adapter]
) -> None:
    """All at once, the base among them; and again from vLLM's caches."""
    engine.adapt(adapters)
    engine.load(make_model(0), "0")
    plain = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, max_context=200))
    plain.adapt(adapters)
    plain.load(make_model(0), "0")
    children = [*(adapter.digest for adapter in adapters), None]
    rows = [request for child in children for request in want(QUESTIONS, GREEDY, child)]
    expected = plain.generate(rows)
    assert engine.generate(rows) == expected
    assert engine.generate(rows[::-1]) == expected[::-1]
    assert len({tuple(map(str, expected[i :: len(QUESTIONS)])) for i in range(len(QUESTIONS))}) == len(QUESTIONS)


def test_an_adapter_that_differs_from_its_files_is_seen(
    engine: VllmEngine, make_model: MakeModel, adapters: list[Adapter], tmp_path: Path
) -> None:
    """The worker compares every module, one that the adapter leaves alone too."""
    engine.adapt(adapters)
    engine.load(make_model(0), "0")
    engine.generate(want(QUESTIONS, GREEDY, adapters[0].digest))
    other = write_adapter(tmp_path / "other", make_model(0), 9, rank=4, targets=("k_proj", "down_proj"))
    arguments = (_number(adapters[0].digest), "", str(adapters[0].folder))
    assert engine._llm.collective_rpc("differing_adapter", args=arguments) == [[]]
    (wrong,) = engine._llm.collective_rpc("differing_adapter", args=(*arguments[:2], str(other.folder)))
    assert sorted(wrong) == sorted(
        [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("gate_up_proj", "down_proj")]
        + [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("qkv_proj", "o_proj")]
    )


def test_adapters_come_and_go_and_models_are_swapped_beside_them(
    engine: VllmEngine, make_model: MakeModel, adapters: list[Adapter]
) -> None:
    engine.adapt(adapters[:2])
    engine.load(make_model(0), "0")
    first = engine.generate(want(QUESTIONS, GREEDY, adapters[0].digest))
    engine.adapt(adapters[1:])
    processes = list(engine._processes)
    engine.load(make_model(1), "1")
    assert engine.generate(want(QUESTIONS, GREEDY)) == transformers_on(make_model(1), QUESTIONS, GREEDY)
    with pytest.raises(EvaluationError, match="there is no adapter"):
        engine.generate(want(QUESTIONS, GREEDY, adapters[0].digest))
    engine.adapt(adapters)
    engine.load(make_model(0), "0")
    assert engine.generate(want(QUESTIONS, GREEDY, adapters[0].digest)) == first
    assert engine._processes == processes


def test_adapters_without_room_in_the_running_engine_have_it_started_anew(
    make_model: MakeModel, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks of 4 and 12 take vLLM's 16; what is running has set aside nothing, then too little, then enough."""
    engine, closed = VllmEngine(SETTINGS), list[tuple[int, int]]()
    monkeypatch.setattr(engine, "close", lambda: closed.append(engine._room))
    engine._digest = "0"
    rooms = [(0, 0), (8, 3), (16, 3), (32, 2), (32, 4)]
    for engine._room in rooms:
        engine.load(make_model(0), "0")
    assert closed == []
    engine.adapt(adapters)
    for engine._room in rooms:
        engine.load(make_model(0), "0")
    assert closed == [(0, 0), (8, 3), (32, 2)]


def test_a_rank_beyond_vllms_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "high", make_model(0), 0, rank=513)
    with pytest.raises(EvaluationError, match=r"has rank 513, and vLLM takes .* 512; extract the experts at a lower"):
        VllmEngine(SETTINGS).adapt([adapter])


def test_a_call_that_never_returns_is_an_error() -> None:
    engine = VllmEngine(SETTINGS)
    never = threading.Event()
    with pytest.raises(EvaluationError, match=r"vLLM failed while generating .*no answer for 0 s"):
        engine._call("generating", 0.1, never.wait)
    never.set()


def test_the_engines_processes_end_with_the_process_that_started_them() -> None:
    """A sleeping owner, and an engine with its worker, as plain processes."""
    owner = subprocess.Popen(["sleep", "60"])
    worker = (
        "import time; from cycleqd.evaluation.engines.common.vllm_worker import ReadBack; "
        f"ReadBack().end_with({owner.pid}); print('ready', flush=True); time.sleep(60)"
    )
    engine = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"],
        stdout=subprocess.PIPE,
    )
    with engine:
        assert engine.stdout is not None and engine.stdout.readline() == b"ready\n"
        owner.kill()
        owner.wait()
        assert engine.wait(timeout=30) == -signal.SIGKILL
        assert engine.stdout.read() == b""  # the worker has closed its end, too


def test_a_dead_engine_is_an_error_and_leaves_no_process(engine: VllmEngine, make_model: MakeModel) -> None:
    """The last test of the file: it kills the engine."""
    engine.load(make_model(0), "0")
    processes = list(engine._processes)
    assert processes
    for process in processes:
        process.kill()
    with pytest.raises(EvaluationError, match="vLLM failed while generating"):
        engine.generate(want(QUESTIONS, GREEDY))
    with pytest.raises(EvaluationError, match="no model"):
        engine.generate(want(QUESTIONS, GREEDY))
    assert not set(processes) & set(multiprocessing.active_children())
