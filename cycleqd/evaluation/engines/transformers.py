"""Inference with the transformers library: any device, and the same bytes on every run.

A batch holds requests of one group and adapter, and depends on nothing but their tokens and the token budget: so a
(model, task) pair gives the same replies whatever ran before it, whatever is asked beside it and wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cycleqd.errors import EvaluationError
from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Progress, Request, Sampling
from cycleqd.evaluation.engines.common.adapter import AdapterFolder
from cycleqd.evaluation.engines.common.checkpoint import LOCAL, ModelFolder

if TYPE_CHECKING:
    import torch


class TransformersEngine(Engine):
    """Adapters are added to the outputs of the model's linear layers, one adapter at a time."""

    name = "transformers"

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._model: Any = None
        self._adapters: dict[str, AdapterFolder] = {}
        self._in_use = _InUse()
        self._checkpoint: ModelFolder | None = None
        self._digest: str | None = None

    @property
    def reproducible(self) -> bool:
        """Held by tests on the CPU; kernels of other devices may choose their order of summation."""
        return self._device() == "cpu"

    @property
    def version(self) -> str:
        """Libraries, device, dtype and threads in one line, for run.json."""
        import torch
        import transformers

        dtype = str(self._model.dtype).removeprefix("torch.") if self._model is not None else self.settings.dtype
        libraries = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return f"{libraries}, {self._device()}, {dtype}, {self.settings.threads} threads"

    def load(self, folder: Path, digest: str) -> None:
        """Raises EvaluationError when the folder's tensors are not exactly the model's, or its architecture differs."""
        if digest == self._digest:
            return
        checkpoint = ModelFolder.open(folder, self.settings.max_context)
        converted = checkpoint.require_all_tensors()
        if self._checkpoint is not None:
            self._checkpoint.require_same_architecture(checkpoint)
        try:
            self._digest = None  # half-copied weights are nobody's
            if self._model is not None and converted:
                self.close()
            if self._model is None:
                self._start(checkpoint)
            else:
                _copy_weights(checkpoint, self._model)
        except (RuntimeError, MemoryError) as error:
            raise EvaluationError(f"{folder} could not be loaded on {self._device()}: {_line(error)}") from error
        self._checkpoint, self._digest = checkpoint, digest

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Any rank is taken."""
        self._adapters = {adapter.digest: AdapterFolder.open(adapter) for adapter in adapters}
        self._in_use.clear()

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """When memory runs out, a group is begun again once with half the token budget; then raises EvaluationError."""
        if self._checkpoint is None or self._digest is None:
            raise EvaluationError("the transformers engine has no model; load one before generating")
        prompts = self._checkpoint.encode([r.conversation for r in requests], [r.chat for r in requests])
        groups: dict[tuple[str | None, int, Sampling], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((request.adapter, request.group, request.sampling), []).append(i)
        done: dict[int, Completion] = {}
        for (adapter, _, sampling), members in groups.items():
            self._use(adapter)
            replies = self._within_memory([prompts[i] for i in members], sampling, progress)
            done.update(zip(members, replies, strict=True))
        return [done[i] for i in range(len(requests))]

    def close(self) -> None:
        """Drop the model and free the device's memory; `load` starts anew."""
        self._model, self._checkpoint, self._digest = None, None, None
        self._in_use = _InUse()
        _free_memory()

    def _device(self) -> str:
        import torch

        if self.settings.device != "auto":
            return self.settings.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _start(self, checkpoint: ModelFolder) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(self.settings.threads)
        dtype = "auto" if self.settings.dtype == "auto" else getattr(torch, self.settings.dtype)
        model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, **LOCAL)
        model.generation_config = GenerationConfig()  # the folder's own settings would mix into ours
        self._model = model.to(self._device()).eval()  # type: ignore[arg-type]

    def _use(self, digest: str | None) -> None:
        """Put an adapter in force, or none."""
        if digest is None:
            self._in_use.clear()
        elif digest not in self._adapters:
            raise EvaluationError(f"there is no adapter {digest}; make it known before generating with it")
        else:
            self._in_use.put(digest, self._adapters[digest], self._model)

    def _within_memory(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None
    ) -> list[Completion]:
        assert self._checkpoint is not None
        budget = self.settings.batch_tokens
        for tokens in (budget, budget // 2):
            try:
                return self._generate(prompts, sampling, tokens, progress)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise EvaluationError(
                        f"generating with {self._checkpoint.folder} failed: {_line(error)}"
                    ) from error
                _free_memory()
        raise EvaluationError(
            f"out of memory on {self._device()} with {self._checkpoint.folder}, also after halving the batch to "
            f"{budget // 2} tokens; lower evaluation.batch_tokens"
        )

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, budget: int, progress: Progress | None
    ) -> list[Completion]:
        assert self._checkpoint is not None
        done: dict[int, Completion] = {}
        rooms = [min(sampling.max_tokens, self._checkpoint.context - len(prompt)) for prompt in prompts]
        for i, room in enumerate(rooms):
            if room < 1:
                done[i] = Completion("", "overflow", len(prompts[i]), 0)
        waiting = sorted((i for i in range(len(prompts)) if i not in done), key=lambda i: len(prompts[i]))
        for batch in _batches(waiting, prompts, rooms, budget):
            replies = self._batch([prompts[i] for i in batch], [rooms[i] for i in batch], sampling)
            done.update(zip(batch, replies, strict=True))
            if progress:
                progress(len(batch))
        return [done[i] for i in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], sampling: Sampling) -> list[Completion]:
        """Replies to one batch, padded on the left; row i may grow by rooms[i] tokens."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        checkpoint = self._checkpoint
        assert checkpoint is not None
        pad = checkpoint.end_tokens[0] if checkpoint.end_tokens else 0
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        rows = _Rows(checkpoint, rooms, sampling.stop)
        greedy = sampling.temperature == 0
        config = GenerationConfig(
            max_new_tokens=max(rooms),
            do_sample=not greedy,
            pad_token_id=pad,
            eos_token_id=None,
            **({} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}),
        )
        with torch.random.fork_rng(devices=[self._model.device] if self._model.device.type == "cuda" else []):
            torch.manual_seed(_seed(sampling.seed, prompts))
            self._model.generate(
                ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([rows])
            )
        return [rows.completion(i, len(prompt)) for i, prompt in enumerate(prompts)]


class _InUse:
    """The adapter in force: a linear layer that it names gives x Wᵀ + (x Aᵀ) Bᵀ; without one, what it gave before."""

    def __init__(self) -> None:
        self._digest: str | None = None
        self._matrices: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._hooked: set[str] = set()

    def clear(self) -> None:
        """The model by itself."""
        self._digest, self._matrices = None, {}

    def put(self, digest: str, adapter: AdapterFolder, model: Any) -> None:
        """Raises EvaluationError when a module is not a linear layer of the adapter's shape."""
        from torch import nn

        if digest == self._digest:
            return
        self.clear()
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        shapes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
        wrong = sorted(name for name, shape in adapter.shapes.items() if shapes.get(name) != shape)
        if wrong:
            raise EvaluationError(
                f"{adapter.folder}: {len(wrong)} modules are not linear layers of that shape in the model, among them"
                f" {wrong[:3]}; the adapter was made for another base"
            )
        for name in sorted(adapter.shapes.keys() - self._hooked):
            layers[name].register_forward_hook(partial(self._add, name))
            self._hooked.add(name)
        self._matrices = {
            name: (a.to(model.device, model.dtype), b.to(model.device, model.dtype))
            for name, a, b in adapter.matrices()
        }
        self._digest = digest

    def _add(self, name: str, layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        from torch.nn.functional import linear

        if name not in self._matrices:
            return None  # the output as it is
        a, b = self._matrices[name]
        return linear(linear(inputs[0], a), b).add_(output)


class _Rows:
    """Follows each row of a batch until it ends: by an end token, a stop string, or its room."""

    def __init__(self, checkpoint: ModelFolder, rooms: Sequence[int], stop: Sequence[str]) -> None:
        self._checkpoint, self._rooms, self._stop = checkpoint, rooms, stop
        self._tokens: list[list[int]] = [[] for _ in rooms]
        self._finish: list[str] = ["" for _ in rooms]

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Called by `generate` after each token with ids of shape (rows, tokens so far); True where a row is done."""
        import torch

        for row, token in enumerate(ids[:, -1].tolist()):
            if not self._finish[row]:
                self._tokens[row].append(token)
                self._finish[row] = self._ended(row, token)
        return torch.tensor([bool(finish) for finish in self._finish], device=ids.device)

    def completion(self, row: int, prompt_tokens: int) -> Completion:
        tokens = self._tokens[row]
        text = self._checkpoint.decode(tokens, self._stop)
        return Completion(text, "stop" if self._finish[row] == "stop" else "length", prompt_tokens, len(tokens))

    def _ended(self, row: int, token: int) -> str:
        if token in self._checkpoint.end_tokens:
            return "stop"
        if self._stop:
            text = self._checkpoint.decode(self._tokens[row], ())
            if any(stop in text for stop in self._stop):
                return "stop"
        return "length" if len(self._tokens[row]) == self._rooms[row] else ""


def _batches(
    order: Sequence[int], prompts: Sequence[Sequence[int]], rooms: Sequence[int], budget: int
) -> Iterator[list[int]]:
    """Cuts `order` (prompts ascending in length) into batches of rows × (longest prompt + new tokens) ≤ budget.

    A row that alone is over the budget makes a batch of its own.
    """
    batch: list[int] = []
    for i in order:
        new = max(rooms[j] for j in [*batch, i])
        if batch and (len(batch) + 1) * (len(prompts[i]) + new) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _seed(seed: int, prompts: Sequence[Sequence[int]]) -> int:
    """A batch's own seed, from what is in it: replies do not depend on what was generated before."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, prompts]).encode()).digest()[:8], "big")


def _copy_weights(checkpoint: ModelFolder, model: Any) -> None:
    """Fill the running model in place from a folder whose names and shapes have been checked."""
    state = model.state_dict()
    for name, tensors in checkpoint.tensors():
        if name in state:  # some folders hold buffers that the model computes
            state[name].copy_(tensors.get_tensor(name))


def _out_of_memory(error: BaseException) -> bool:
    """torch has a class for it on CUDA and a plain RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or "memory" in str(error)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
