"""Opening a checkpoint: headers and config only, a few kilobytes for a model of any size."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.headers import TensorInfo, read_header, read_object
from cycleqd.weights.layout import INDEX
from cycleqd.weights.protocols import Source

FLOATS = frozenset({"F32", "BF16", "F16"})
"""Dtypes that are merged. Integers and booleans are buffers, taken from the base."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Checkpoint:
    """What headers and config show. `tensors` are in storage order (file name, then offset), tied copies left out."""

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
        return self.config.get(key, self.config.get("text_config", {}).get(key))

    def is_embedding(self, name: str) -> bool:
        """Whether a tensor is an embedding or a head: named like one, or a matrix with a row for every token.

        Args:
            name: Name of the tensor.
        """
        shape = self.tensors[name].shape
        named = any(part in name for part in ("embed", "lm_head", ".wte.", ".wpe."))
        return len(shape) == 2 and (named or shape[0] == self.setting("vocab_size"))


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
    if "quantization_config" in config or "compression_config" in config:
        method = config.get("quantization_config", {}).get("quant_method", "unknown method")
        raise InvalidInputError(
            f"{source.location} is quantised ({method}); merging needs its bf16, fp16 or fp32 weights."
        )
    index = _read_json(source, sizes, INDEX)["weight_map"] if INDEX in sizes else None
    files = sorted(set(index.values())) if index is not None else _lone_file(source, sizes)
    for name in files:
        if name not in sizes:
            raise InvalidInputError(f"{source.location} lacks the shard {name} that its index names; fetch it again.")
    with ThreadPoolExecutor(4) as pool:
        headers = list(pool.map(lambda name: read_header(source, name, sizes[name]), files))
    tensors = {t.name: t for header in headers for t in header}
    if sum(map(len, headers)) != len(tensors) or (index is not None and _differs(index, tensors)):
        raise InvalidInputError(
            f"The index and the shards of {source.location} name different tensors; fetch it again."
        )
    _refuse_quantised(source, tensors)
    checkpoint = Checkpoint(source, config, tensors, sizes)
    return _without_tied_copy(checkpoint)


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
    pickles = [name for name in sizes if name.endswith((".bin", ".pt", ".pth")) and name != "training_args.bin"]
    if pickles:
        raise InvalidInputError(
            f"{where} holds pickled weights ({pickles[0]}), which can run code; if you trust them, convert them: "
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({where!r}, dtype='auto').save_pretrained({where + '-safetensors'!r})\", and copy the "
            "tokenizer's files there."
        )
    if any(name.endswith(".gguf") for name in sizes):
        raise InvalidInputError(f"{where} holds GGUF weights; merging needs the model's safetensors.")
    raise InvalidInputError(f"{where} has no *.safetensors files; a Hugging Face model folder is expected.")


def _lone_file(source: Source, sizes: Mapping[str, int]) -> list[str]:
    files = [name for name in sizes if name.endswith(".safetensors")]
    if "model.safetensors" in files:
        return ["model.safetensors"]
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
    """Tied weights are one tensor: drop the head as Hugging Face does, after checking that it is a copy."""
    tensors = dict(checkpoint.tensors)
    if not (checkpoint.setting("tie_word_embeddings") and _HEAD in tensors and _EMBEDDING in tensors):
        return checkpoint
    head, embedding = tensors.pop(_HEAD), tensors[_EMBEDDING]
    step = 8 << 20
    for offset in range(0, max(head.nbytes, embedding.nbytes), step):
        pieces = [
            checkpoint.source.read_range(t.file, t.start + offset, min(t.start + offset + step, t.stop))
            for t in (head, embedding)
        ]
        if bytes(pieces[0]) != bytes(pieces[1]):
            raise InvalidInputError(
                f"{checkpoint.location} says tie_word_embeddings but stores a different {_HEAD}; "
                "set it to false or save the model again."
            )
    return Checkpoint(checkpoint.source, checkpoint.config, tensors, checkpoint.sizes)
