"""What both engines read from a Hugging Face folder: its configuration, tokenizer, end tokens and tensor names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cycleqd.errors import EvaluationError, InvalidInputError
from cycleqd.evaluation.engines import Chat
from cycleqd.evaluation.engines.common.architecture import filled, fit
from cycleqd.evaluation.task import Message
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSource
from cycleqd.weights.settings import differences

DATE = datetime(2024, 7, 26)
"""Today, for chat templates."""
LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""How transformers opens a folder: nothing is fetched, no code of the folder's is run, and nobody is asked about it."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder, opened without its weights. `context` is the longest sequence in tokens, prompt and reply together."""

    folder: Path
    config: Any
    tokenizer: Any
    end_tokens: tuple[int, ...]
    context: int

    @classmethod
    def open(cls, folder: Path, max_context: int | None) -> ModelFolder:
        """Read configuration and tokenizer.

        Args:
            folder: A Hugging Face folder.
            max_context: Tokens that lower the model's own limit; None: the model's own.

        Raises:
            EvaluationError: They are missing, or there is no chat template.
        """
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(folder, **LOCAL)
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
            has_own = (folder / "generation_config.json").is_file()
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if has_own else config
        except (OSError, ValueError, KeyError) as error:
            raise EvaluationError(f"{folder}: not a usable model folder ({' '.join(str(error).split())})") from error
        if not tokenizer.chat_template:
            raise EvaluationError(f"{folder}: the tokenizer has no chat template; add one to the base and every expert")
        ends = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
        text = config.get_text_config()  # of a wrapper its language model's
        limit = getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length
        return cls(
            folder=folder,
            config=config,
            tokenizer=tokenizer,
            end_tokens=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
            context=min(limit, max_context or limit),
        )

    @property
    def dtype(self) -> str:
        """The dtype the checkpoint is stored in, as torch names it."""
        return str(self.config.dtype or "float32").removeprefix("torch.")

    def encode(self, conversations: Sequence[Sequence[Message]], chats: Sequence[Chat] = ()) -> list[list[int]]:
        """Token ids of each conversation in the model's chat template, with the prompt for its next reply.

        Args:
            conversations: Each as the template takes it, without the system message of its chat.
            chats: How each is put before the model; all plainly without them.

        Raises:
            EvaluationError: The template refuses one.
        """
        pairs = zip(conversations, chats or [Chat()] * len(conversations), strict=True)
        try:
            texts = [prompt_of(self.tokenizer, conversation, chat) for conversation, chat in pairs]
        except Exception as error:  # a template is a program: it may fail of anything
            raise EvaluationError(f"{self.folder}: the chat template refuses a conversation ({error})") from error
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def decode(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of a reply, without end tokens.

        Args:
            tokens: Ids of the reply's tokens.
            stop: The text ends before the first of these strings.
        """
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cut(text, stop)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Every tensor's name with the open safetensors file that holds it."""
        from safetensors import safe_open

        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise EvaluationError(f"{self.folder}: no safetensors files; convert the model with save_pretrained")
        for file in files:
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened

    def require_all_tensors(self) -> bool:
        """Refuse a folder that is not whole, or whose tensors are not the architecture's, before any engine sees it.

        Returns:
            Whether the architecture has other tensors, which transformers makes of the stored ones.

        Raises:
            EvaluationError: It does not fit.
        """
        try:
            found = fit(self.config, open_checkpoint(LocalSource(self.folder)).tensors)
        except InvalidInputError as error:
            raise EvaluationError(str(error)) from error
        if found.problem is not None:
            raise EvaluationError(f"{self.folder}: {found.problem}")
        return found.converted

    def require_same_architecture(self, other: ModelFolder) -> None:
        """Refuse a model that cannot be swapped in for this one.

        Args:
            other: The model to swap in.

        Raises:
            EvaluationError: The same weights would compute something else in it.
        """
        found = list(differences(filled(self.config), filled(other.config), complete=True))
        if found:
            which = ", ".join(f"{key} ({theirs} against {mine})" for key, mine, theirs in found)
            raise EvaluationError(
                f"{other.folder} differs from {self.folder}, which the engine was started with, in {which}; all models"
                " of an evolution need one architecture"
            )


def prompt_of(tokenizer: Any, conversation: Sequence[Message], chat: Chat) -> str:
    """A prompt: a conversation in a model's chat template, and the beginning of its reply.

    Templates that print a date get a fixed one, so that prompts do not change from day to day.

    Args:
        tokenizer: The model's.
        conversation: Without the system message of its chat.
        chat: How it is put before the model.
    """
    text: str = tokenizer.apply_chat_template(
        chat.messages(conversation),
        **{
            "date_string": DATE.strftime("%d %b %Y"),
            "strftime_now": DATE.strftime,
            **chat.template,
            "tokenize": False,
            "add_generation_prompt": True,
        },
    )
    return text + chat.prefill


def cut(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop string in it.

    Args:
        text: May hold none.
        stop: Not empty strings.
    """
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
