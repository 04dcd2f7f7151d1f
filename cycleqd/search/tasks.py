"""The sections of a task: its samples, how conversations are put before a model, how replies are generated."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from cycleqd.search.fields import Fraction, Location, Plugin, Section


class SplitConfig(Section):
    """Which samples the search sees and which are held out: by seed and share, or by explicit ids."""

    share: Fraction = 0.5
    """Share of the samples that the search sees; the others are held out for the report."""
    seed: int = 0
    """Seed of the shuffle before the share is taken."""
    search_ids: tuple[str, ...] | None = None
    """Instead of a share: the ids of the samples that the search sees."""
    test_ids: tuple[str, ...] | None = None
    """The ids of the samples that are held out; given together with `search_ids`."""
    search_samples: int | None = Field(default=None, ge=1)
    """Number of the search's samples to score on, the same for every model; empty: all."""
    test_samples: int | None = Field(default=None, ge=1)
    """The same for the held-out samples; empty: all."""

    @model_validator(mode="after")
    def _disjoint(self) -> SplitConfig:
        if (self.search_ids is None) != (self.test_ids is None):
            raise ValueError("give both search_ids and test_ids, or neither")
        shared = set(self.search_ids or ()) & set(self.test_ids or ())
        if shared:
            raise ValueError(
                f"search_ids and test_ids share {sorted(shared)[:3]}: a held-out sample must not be searched on"
            )
        return self


class DecodingConfig(Section):
    """How replies are generated for a task. Temperature 0 is greedy."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest reply, in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy decoding; above 0 tokens are sampled."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this probability."""
    stop: tuple[str, ...] = ()
    """A reply ends before any of these strings."""
    seed: int = 0
    """Seed of sampling."""


class ChatConfig(Section):
    """How a task's conversations are put before a model, and what of its replies is judged."""

    system: str = ""
    """A system message before the task's own messages; empty: none."""
    template: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the models' chat template, as `enable_thinking: false`."""
    reasoning: tuple[str, ...] = ("<think>", "</think>")
    """What opens and closes the block of reasoning that is taken off the beginning of a reply before it is judged; an
    empty opening where the template has written it; `[]`: replies stay as they are."""
    prefill: str = ""
    """The beginning of every reply, written for the model; it goes on from there, and both together are judged."""

    @model_validator(mode="after")
    def _usable(self) -> ChatConfig:
        if self.reasoning and (len(self.reasoning) != 2 or not self.reasoning[1]):
            raise ValueError("reasoning is what opens and what closes it, as ['<think>', '</think>'], or []")
        own = {"add_generation_prompt", "chat_template", "conversation", "messages", "tokenize"}
        if taken := sorted(own & set(self.template)):
            raise ValueError(f"template has {taken[0]}, which is set for every conversation: leave it out")
        return self


class TaskConfig(Section):
    """A task: plug-in class, data, settings."""

    class_: Plugin = Field(alias="class")
    """A built-in benchmark, `code`, `db` or `os`; or your own, `file.py:Class` or `package.module:Class`."""
    data: Location
    """The task's data: a file, a folder or an s3:// prefix."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings; its class checks them."""
    split: SplitConfig = SplitConfig()
    """Which samples the search sees."""
    generation: DecodingConfig = DecodingConfig()
    """How replies are generated."""
    chat: ChatConfig = ChatConfig()
    """How conversations are put before a model, and what of its replies is judged."""
    report_only: bool = False
    """Score it for base, experts and final model only; the search never uses it."""
