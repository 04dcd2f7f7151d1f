"""Opening a checkpoint: headers and config only, a few kilobytes for a model of any size."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.headers import TensorInfo, read_header, read_object
from cycleqd.weights.layout import INDEX, WHOLE
from cycleqd.weights.protocols import Source

FLOATS = frozenset({"F32", "BF16", "F16"})
"""Dtypes that are merged. Integers and booleans are buffers, taken from the base."""

_TIED_PAIR = ("lm_head.weight", "model.embed_tokens.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", ".embed_in.weight", ".word_embeddings.weight", ".embeddings.weight")
_PIECE = 8 << 20
_TRAINING = ("training_args.bin", "optimizer.", "scheduler.", "scaler.", "rng_state", "global_step")
_MASKS = (".attn.bias", ".attention.bias", ".attn.masked_bias", ".attention.masked_bias")


@dataclass(frozen=True)
class Checkpoint:
    """What headers and config show. `tensors` are in storage order (file name, then offset).

    Left out are tied copies, and what is never trained though some models store it: rotary frequencies, causal masks.
    """

    source: Source
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    sizes: Mapping[str, int]

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        return self.source.location

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def setting(self, key: str) -> Any:
        """A config value, looked up in a multi-modal model's `text_config` too; None when absent.

        Args:
            key: Key of config.json.
        """
        return self.config.get(key, (self.config.get("text_config") or {}).get(key))

    def stacked(self, name: str) -> int:
        """How many matrices a tensor is: 0 for what is none, such as a bias, and more where experts are fused in one.

        A stack has the shape [experts, out, in], or [experts, in, out]; kernels of convolutions are none.

        Args:
            name: Name of the tensor.
        """
        shape = self.tensors[name].shape
        if len(shape) == 3:
            return shape[0] if min(shape[1:]) > 1 and "conv" not in name else 0
        return int(len(shape) == 2 and not name.endswith("bias"))

    def is_embedding(self, name: str) -> bool:
        """Whether a tensor is an embedding or a head: named like one, or a matrix with a row for every token.

        Args:
            name: Name of the tensor.
        """
        shape = self.tensors[name].shape
        named = any(part in name for part in ("embed", "lm_head", ".wte.", ".wpe."))
        return len(shape) == 2 and (named or shape[0] == self.setting("vocab_size"))


def is_computed(tensor: TensorInfo) -> bool:
    """Whether a stored tensor is one that models compute themselves and libraries do not read: a buffer.

    Args:
        tensor: Its name and shape are looked at.
    """
    mask = tensor.name.endswith(_MASKS) and (not tensor.shape or tensor.shape[:2] == (1, 1))
    return mask or tensor.name.endswith("inv_freq")


def open_checkpoint(source: Source) -> Checkpoint:
    """Read config and headers and check that they are whole and consistent.

    Args:
        source: The checkpoint's files.

    Raises:
        InvalidInputError: no config, an adapter, pickle or GGUF weights, quantised weights, missing shards, truncated
            or broken files.
    """
    sizes = dict(source.files())
    _refuse_other_formats(source, sizes)
    config = _read_json(source, sizes, "config.json")
    method = config.get("quantization_config") or config.get("compression_config")
    if method:
        name = method.get("quant_method", "unknown method") if isinstance(method, Mapping) else method
        raise InvalidInputError(
            f"{source.location} is quantised ({name}); merging needs its bf16, fp16 or fp32 weights."
        )
    index = _index(source, sizes)
    files = sorted(set(index.values())) if index is not None else _lone_file(source, sizes)
    with ThreadPoolExecutor(4) as pool:
        headers = list(pool.map(lambda name: read_header(source, name, sizes[name]), files))
    tensors = {t.name: t for header in headers for t in header}
    if sum(map(len, headers)) != len(tensors) or (index is not None and _differs(index, tensors)):
        raise InvalidInputError(
            f"The index and the shards of {source.location} name different tensors; fetch it again."
        )
    _refuse_quantised(source, tensors)
    kept = {name: tensor for name, tensor in tensors.items() if not is_computed(tensor)}
    return _without_tied_copy(Checkpoint(source, config, kept, sizes))


def _index(source: Source, sizes: Mapping[str, int]) -> Mapping[str, str] | None:
    """Tensor → file, by the folder's index; None where it has none."""
    if INDEX not in sizes:
        return None
    where, found = source.location, _read_json(source, sizes, INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise InvalidInputError(f"{INDEX} of {where} has no weight_map of tensors to files; fetch it again.")
    files = set(found.values())
    beside = WHOLE in sizes and files != {WHOLE}
    if missing := sorted(files - sizes.keys()):
        stale = f", or remove the index if {WHOLE} beside it is the whole model" if beside else ""
        raise InvalidInputError(f"{where} lacks the shard {missing[0]} that its index names; fetch it again{stale}.")
    if beside:
        raise InvalidInputError(
            f"{where} holds two models, {WHOLE} and the shards that its index names: remove one of them."
        )
    return found


def _differs(index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> bool:
    return dict(index) != {name: t.file for name, t in tensors.items()}


def _read_json(source: Source, sizes: Mapping[str, int], name: str) -> dict[str, Any]:
    if name not in sizes:
        raise InvalidInputError(f"{source.location} has no {name}; a Hugging Face model folder is expected.")
    return read_object(source.read_range, source.location, name, sizes[name])


def _refuse_other_formats(source: Source, sizes: Mapping[str, int]) -> None:
    where = source.location
    weights = [name for name in sizes if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if "adapter_config.json" in sizes and not weights:
        raise InvalidInputError(
            f"{where} is a PEFT adapter, not a model; merge it into its base first: pip install peft && python -c "
            f"\"from peft import AutoPeftModelForCausalLM as M; m = M.from_pretrained({where!r}, dtype='auto'); "
            f"m.merge_and_unload().save_pretrained({where + '-merged'!r})\", and copy the base's tokenizer files there."
        )
    if weights:
        return
    left = [name for name in sizes if name.endswith((".bin", ".pt", ".pth"))]
    pickles = [name for name in left if not name.startswith(_TRAINING)]
    if pickles:
        raise InvalidInputError(
            f"{where} holds pickled weights ({pickles[0]}), which can run code; if you trust them, convert them: "
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({where!r}, dtype='auto').save_pretrained({where + '-safetensors'!r})\", and copy the "
            "tokenizer's files there."
        )
    if any(name.endswith(".gguf") for name in sizes):
        raise InvalidInputError(f"{where} holds GGUF weights; merging needs the model's safetensors.")
    only = f" (only what training goes on from: {left[0]})" if left else ""
    raise InvalidInputError(f"{where} has no *.safetensors files{only}; a Hugging Face model folder is expected.")


def _lone_file(source: Source, sizes: Mapping[str, int]) -> list[str]:
    files = [name for name in sizes if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if WHOLE in files:
        return [WHOLE]
    if len(files) > 1:
        raise InvalidInputError(f"{source.location} has {len(files)} safetensors files but no {INDEX}; fetch it again.")
    return files


def _refuse_quantised(source: Source, tensors: Mapping[str, TensorInfo]) -> None:
    for name, tensor in tensors.items():
        packed = name.endswith((".qweight", ".qzeros", ".SCB", ".weight_packed", ".absmax"))
        weight = name.endswith(".weight") and tensor.dtype not in FLOATS | {"F64"}
        if packed or weight:
            raise InvalidInputError(
                f"{source.location} is quantised ({name} is stored as {tensor.dtype}); "
                "merging needs its bf16, fp16 or fp32 weights."
            )


def _without_tied_copy(checkpoint: Checkpoint) -> Checkpoint:
    """Tied weights are one tensor: drop the head as Hugging Face does, where it is a copy.

    Configurations of classes that tie by default need not say so: then an equal head is a copy, and another is its own.
    """
    tied = checkpoint.setting("tie_word_embeddings")
    head, embedding = (
        next((name for name in checkpoint.tensors if name.endswith(ends)), None) for ends in (_HEADS, _EMBEDDINGS)
    )
    if tied is False or head is None or embedding is None:
        return checkpoint
    tensors = dict(checkpoint.tensors)
    if _equal(checkpoint, tensors.pop(head), tensors[embedding]):
        return Checkpoint(checkpoint.source, checkpoint.config, tensors, checkpoint.sizes)
    if tied is None or (head, embedding) != _TIED_PAIR:  # other classes may not tie these two
        return checkpoint
    raise InvalidInputError(
        f"{checkpoint.location} says tie_word_embeddings but stores a different {head}; "
        "set it to false or save the model again."
    )


def _equal(checkpoint: Checkpoint, first: TensorInfo, second: TensorInfo) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    for offset in range(0, first.nbytes, _PIECE):
        pieces = [
            bytes(checkpoint.source.read_range(t.file, t.start + offset, min(t.start + offset + _PIECE, t.stop)))
            for t in (first, second)
        ]
        if pieces[0] != pieces[1]:
            return False
    return True
