"""The interface of an engine: conversations in, texts out; models are swapped and adapters served while it runs.

A module of this package is an engine, found by its name; what engines share is in common/.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cycleqd.evaluation.task import Message
from cycleqd.loading import load_class


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with.

    `dtype` "auto" is the checkpoint's own. `batch_tokens` bounds rows × (longest prompt + new tokens) of one batch.
    `max_context`, in tokens, lowers the model's own limit. `threads` are CPU threads of the arithmetic.
    `server` is the address of the server that the engine `server` generates with. `gpus` divide each model among them.
    `arguments` are the engine's own, by its own names; only vLLM has any.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 16384
    threads: int = 2
    max_context: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    server: str = ""
    gpus: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How to generate. Temperature 0 is greedy; `max_tokens` bounds one reply, in tokens of the model's tokenizer."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Chat:
    """How conversations are put before a model: a `system` message before them (empty: none), `template`, the arguments
    of its chat template, and `prefill`, the beginning of its reply; the engine's text is what follows that."""

    system: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """A conversation with the system message.

        Args:
            conversation: The task's.
        """
        return [*([Message(role="system", content=self.system)] if self.system else []), *conversation]


PLAIN = Chat()


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: W + B A in place of some matrices W of the loaded model.

    `folder` is a PEFT folder in one plain form (see `common/adapter.py`); its files must not change while it is in use.
    `digest` names its content: equal digests are equal weights on every base. A remote engine reads no folder, but has
    the adapter made of the core that `origin` names, EVOLUTION/MODEL.
    """

    digest: str
    folder: Path
    origin: str = ""


@dataclass(frozen=True)
class Request:
    """A conversation that wants a reply.

    `adapter` is the digest of the adapter to use, None for the loaded model by itself. Requests of one `group` and
    adapter may share a batch in a reproducible engine, others never do: so replies do not depend on what else is asked.
    """

    conversation: Sequence[Message]
    sampling: Sampling
    adapter: str | None = None
    group: int = 0
    chat: Chat = PLAIN


@dataclass(frozen=True)
class Completion:
    """One reply. `finish` is "stop" (end token or stop string), "length" (max_tokens reached), or "overflow".

    "overflow": prompt and one new token do not fit the context; `text` is empty and the episode ends without a pass.
    Stop strings are not part of `text`.
    """

    text: str
    finish: Literal["stop", "length", "overflow"]
    prompt_tokens: int
    tokens: int


Progress = Callable[[int], None]
"""Called with the number of requests finished since the last call."""


class Engine(ABC):
    """An inference engine. One start serves every model, adapter and task of a process.

    It starts at its first `load`. Failures of the engine itself (out of memory after the bounded retry, a dead worker)
    raise `cycleqd.errors.EvaluationError`.
    """

    own_modules: ClassVar[str] = "cycleqd.evaluation.engines.{}"

    name: ClassVar[str]
    """Written into every record; scores of different engines are never compared."""

    mixes: ClassVar[bool] = False
    """Whether a call with requests of many adapters and groups is faster than a call for each of them."""

    remote: ClassVar[bool] = False
    """Whether weights are read elsewhere: `load` then needs the other files of a checkpoint, `adapt` no folders."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def reproducible(self) -> bool:
        """Whether two runs on one machine give the same bytes."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Library versions, device and dtype in one line, for run.json."""

    @abstractmethod
    def load(self, folder: Path, digest: str) -> None:
        """Make a checkpoint the current model, swapping into a running engine. All have the first one's architecture.

        Args:
            folder: A Hugging Face folder.
            digest: Identifies the checkpoint; loading the current one again is free.
        """

    @abstractmethod
    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Make adapters of the model that is loaded next known, in place of those that were known before.

        Call it before `load`, which makes room for them.

        Args:
            adapters: All that the following requests name. Their files must stay until the next `adapt` or `close`.

        Raises:
            EvaluationError: An adapter is not in the plain form, or of a rank that the engine does not take.
        """

    @abstractmethod
    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order, through the model's own chat template (generation prompt added).

        Args:
            requests: Their adapters are known, and made for the loaded model.
            progress: Called while the engine works.
        """

    def reset(self) -> None:  # noqa: B027 -- most engines keep nothing
        """Forget caches that could carry state from one evaluation to the next. Adapters' are kept by their digests."""

    def close(self) -> None:  # noqa: B027
        """Stop, free the device."""


def create(kind: str, settings: EngineSettings, root: Path = Path()) -> Engine:
    """The engine that a configuration names; it starts at its first `load`.

    Args:
        kind: "auto" (vllm where CUDA and vllm are there, otherwise transformers), the name of a module of this package,
            or "path/to/file.py:Class" or "package.module:Class" of one's own.
        settings: What it is started with.
        root: The folder that file paths are taken from.

    Raises:
        InvalidInputError: There is no such engine, or its file cannot be imported.
    """
    if kind == "auto":
        kind = "vllm" if _cuda(settings) and importlib.util.find_spec("vllm") else "transformers"
    return load_engine(kind, root)(settings)


def load_engine(kind: str, root: Path = Path()) -> type[Engine]:
    """The class that a configuration names.

    Args:
        kind: As `create` takes it, but "auto".
        root: The folder that file paths are taken from.

    Raises:
        InvalidInputError: There is no such engine, or its file cannot be imported.
    """
    found: type[Engine] = load_class(kind, Engine, root)  # type: ignore[type-abstract]
    return found


def _cuda(settings: EngineSettings) -> bool:
    import torch

    return settings.device != "cpu" and torch.cuda.is_available()
