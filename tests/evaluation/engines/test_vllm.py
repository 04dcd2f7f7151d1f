"""The vLLM engine on tiny models. One start serves the whole file (about 20 seconds on two cores)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines.engine import Completion, Sampling
from cycleqd.evaluation.engines.vllm import VllmEngine
from cycleqd.evaluation.task import Message
from tests.evaluation.engines.test_engines import QUESTIONS, ask, change_config, copy

MakeModel = Callable[..., Path]
SETTINGS = engines.EngineSettings(threads=1, max_context=200)
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def engine(make_model: MakeModel) -> Iterator[VllmEngine]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: pip install --no-deps -r requirements/no-deps.txt")
    engine = VllmEngine(SETTINGS)
    engine.load(make_model(0), "0")
    yield engine
    engine.close()


def transformers_on(folder: Path, questions: list[list[Message]], sampling: Sampling) -> list[Completion]:
    engine = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1, max_context=200))
    engine.load(folder, "")
    return engine.generate(questions, sampling)


@pytest.mark.parametrize("seed", [0, 1, 2, 0])
def test_every_model_swapped_in_gives_the_tokens_of_a_fresh_transformers_engine(
    engine: VllmEngine, make_model: MakeModel, seed: int
) -> None:
    """In float32 both engines agree to the token, so this proves the swap and the agreement at once."""
    engine.load(make_model(seed), str(seed))
    assert engine.generate(QUESTIONS, GREEDY) == transformers_on(make_model(seed), QUESTIONS, GREEDY)


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
    assert engine.generate(QUESTIONS, GREEDY) == transformers_on(tmp_path, QUESTIONS, GREEDY)


def test_stop_strings_and_the_context_limit_work_as_in_transformers(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    whole = engine.generate(QUESTIONS[:1], GREEDY)[0]
    stop = next(letter for letter in whole.text[2:] if letter.isascii())  # vLLM looks at whole characters only
    stopping = Sampling(max_tokens=16, stop=("never", stop))
    long = ask("hello", "n" * 170, "b" * 200)
    replies = engine.generate(long, stopping)
    assert replies == transformers_on(make_model(0), long, stopping)
    assert [reply.finish for reply in replies] == ["stop", "length", "overflow"]


def test_sampling_repeats_with_its_seed_and_changes_with_it(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    warm = Sampling(max_tokens=12, temperature=1.0, seed=1)
    first = engine.generate(QUESTIONS, warm)
    engine.reset()
    assert engine.generate(QUESTIONS, warm) == first
    assert engine.generate(QUESTIONS, Sampling(max_tokens=12, temperature=1.0, seed=2)) != first


def test_progress_counts_every_conversation(engine: VllmEngine, make_model: MakeModel) -> None:
    engine.load(make_model(0), "0")
    seen: list[int] = []
    engine.generate(QUESTIONS, GREEDY, seen.append)
    assert sum(seen) == len(QUESTIONS)


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_engine_lives_on(
    engine: VllmEngine, make_model: MakeModel, tmp_path: Path
) -> None:
    engine.load(make_model(0), "0")
    tied = copy(make_model(1), tmp_path)
    change_config(tied, tie_word_embeddings=True)
    for folder in (make_model(1, intermediate_size=128), tied):
        with pytest.raises(EvaluationError, match=r"need one architecture|set tie_word_embeddings to false"):
            engine.load(folder, "misfit")
        assert len(engine.generate(QUESTIONS, GREEDY)) == len(QUESTIONS)


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
        "import time; from cycleqd.evaluation.engines.vllm_worker import ReadBack; "
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
        engine.generate(QUESTIONS, GREEDY)
    with pytest.raises(EvaluationError, match="no model"):
        engine.generate(QUESTIONS, GREEDY)
    assert not set(processes) & set(multiprocessing.active_children())
