"""Which of vLLM's own settings can be given, and where: those that change replies beside the other ones that do, in
`evaluation`, and those that do not in `place`. Names and meanings are vLLM's (`vllm.EngineArgs`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cycleqd.search.fields import Section

_OWN = {
    "max_model_len": "it is evaluation.max_context",
    "dtype": "it is evaluation.dtype",
    "seed": "it is tasks.NAME.generation.seed",
    "tensor_parallel_size": "it is the GPUs of a pod, place.evaluate.gpu",
    "quantization": (
        "an engine's weights are compared with the checkpoint's, since swapping them has failed silently, and quantised"
        " ones cannot be: leave it out"
    ),
}


class _EngineArgs(Section):
    """Settings that are given to vLLM as they are; those that are left out are vLLM's to choose."""

    refused: ClassVar[str]
    """What is said of a setting that belongs into the other section."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that are set, by vLLM's names."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="before")
    @classmethod
    def _allowed(cls, value: Any) -> Any:
        for name in sorted(value.keys() - cls.model_fields) if isinstance(value, dict) else ():
            if name in _OWN:
                raise ValueError(f"'{name}' is not given to vLLM by this name: {_OWN[name]}")
            if any(name in other.model_fields for other in (ReplyArgs, SpeedArgs)):
                raise ValueError(f"'{name}' {cls.refused}.{name}")
            raise ValueError(
                f"'{name}' is not a setting of vLLM's that can be given here: {', '.join(cls.model_fields)}"
            )
        return value


class ReplyArgs(_EngineArgs):
    """Settings of vLLM that change replies: part of what a score means, frozen, and recorded with every score."""

    refused = "changes no reply: it is place.engine_args"

    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = None
    """Numbers of the cache of keys and values; fp8 halves its memory, and is less exact."""
    disable_sliding_window: bool | None = None
    """End the context where the model's sliding window ends."""


class SpeedArgs(_EngineArgs):
    """Settings of vLLM that say how much memory it takes and how it works: they change no reply but by rounding, as
    timing does.
    """

    refused = "changes replies, so it is frozen with the evolution: it is evaluation.engine_args"

    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    """Bytes for the cache of keys and values, in place of what that share leaves."""
    cpu_offload_gb: float | None = Field(default=None, ge=0)
    """GiB of weights that stay in main memory."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Conversations that are generated at a time."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one step."""
    enable_prefix_caching: bool | None = None
    """Keep what prompts that begin alike share."""
    enable_chunked_prefill: bool | None = None
    """Read long prompts piece by piece, between other conversations' steps."""
    enforce_eager: bool | None = None
    """Compile nothing: a faster start, slower replies."""
    disable_custom_all_reduce: bool | None = None
    """Let several GPUs exchange sums by NCCL alone."""
