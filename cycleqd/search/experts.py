"""Base and experts in the configuration: where they are, and how they take part."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cycleqd.search.fields import Location, Name, Section, without


class Expert(Section):
    """An expert: checkpoint or LoRA adapter (a folder, s3:// prefix or hf://ORG/NAME), and the task it was made for."""

    path: Location
    """The expert: a Hugging Face folder of safetensors or a PEFT LoRA adapter's folder, an s3:// prefix of one, or
    hf://ORG/NAME (@REVISION) for one on the Hugging Face Hub."""
    task: Name
    """The task that it was fine-tuned for, one of the search tasks."""
    rank: int | None = Field(default=None, ge=1, le=512)
    """Rank of the adapter to extract from it, where it is a full checkpoint; empty: `models.rank`."""

    @model_validator(mode="before")
    @classmethod
    def _undecided(cls, value: Any) -> Any:
        """An empty rank is the same as no word about it: what was frozen decides."""
        return without(value, "rank", None)


class Models(Section):
    """The base, the K or more experts fine-tuned from it, and the shard size of the checkpoints that are written."""

    base: Location
    """The base model that every expert was fine-tuned from: a folder, an s3:// prefix, or hf://ORG/NAME."""
    experts: dict[Name, Expert] = Field(min_length=1)
    """At least one expert for each search task, by a name of your choice."""
    shard_size: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(KB|MB|GB)$")] = "5GB"
    """Largest file of a checkpoint that is written, such as 500MB or 5GB."""
    weights: Literal["auto", "dense", "span"] = "auto"
    """How children are kept: `dense` (full checkpoints) or `span` (small cores in the span of low-rank experts). `auto`
    is `span` where every expert is an adapter or `rank` is set, else `dense`; what it chose is frozen."""
    rank: int | None = Field(default=None, ge=1, le=512)
    """Extract an adapter of this rank from every expert that is a full checkpoint; empty: experts stay as they are."""
    keep_dense: bool = False
    """Keep what extracted adapters cannot carry (norms, biases, embeddings, heads, routers, fused experts), instead of
    leaving it out. It is combined, not mutated, and children are then scored by dense swaps."""

    @model_validator(mode="before")
    @classmethod
    def _undecided(cls, value: Any) -> Any:
        """`weights: auto` is the same as no word about it: what was frozen decides."""
        return without(value, "weights", "auto")

    @model_validator(mode="after")
    def _extracted(self) -> Models:
        if self.rank is not None and self.weights == "dense":
            raise ValueError("rank extracts adapters, which weights: dense does not use; remove one of the two")
        if self.keep_dense and self.weights == "dense":
            raise ValueError(
                "keep_dense keeps what extracted adapters leave out, and weights: dense leaves nothing out; remove one"
                " of the two"
            )
        return self
