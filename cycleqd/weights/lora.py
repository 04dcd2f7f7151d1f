"""PEFT LoRA folders as experts: the low-rank factors B and A of each of the base's matrices.

Only the configuration and the header are read when an adapter is opened; factors are read when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.checkpoint import FLOATS, Checkpoint
from cycleqd.weights.headers import TensorInfo, header_length, parse_header, read_object
from cycleqd.weights.lora_config import MERGE_IT, LoraConfig, parse_config
from cycleqd.weights.protocols import Source
from cycleqd.weights.verified import VerifiedReader

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of an adapter's folder that are read."""

_PICKLE = "adapter_model.bin"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDINGS = ("embed", "wte", "wpe")
_QUANTISED = re.compile(r"(bnb|gptq|awq|[48]-?bit|int[48])", re.IGNORECASE)

_FOREIGN = (
    ("lora_magnitude_vector", "holds DoRA's magnitudes ({})"),
    ("lora_embedding_", "adapts an embedding ({})"),
    ("lora_B.bias", "has biases in its LoRA layers ({})"),
    ("trainable_tokens", "also trains embeddings of single tokens ({})"),
    ("base_layer.weight", "also holds {} of its base (if it was not trained, save with save_embedding_layers=False)"),
    ("", "also holds {}, which is neither A nor B of a LoRA layer"),
)
"""Parts of a tensor's name that is none of LoRA's two, and what the adapter does then."""


@dataclass(frozen=True)
class Located:
    """Where the factors of one matrix lie: scaling · B A, A of shape [rank, in] and B of shape [out, rank]."""

    a: TensorInfo
    b: TensorInfo
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.a.shape[0]


class LoraAdapter:
    """An opened adapter. Thread-safe; call `finish` after the last read."""

    def __init__(
        self,
        source: Source,
        reader: VerifiedReader,
        base: Checkpoint,
        config: LoraConfig,
        matrices: Mapping[str, Located],
    ) -> None:
        self._reader = reader
        self._base = base
        self.source = source
        self.location = source.location
        self.config = config
        self.matrices = matrices
        """The adapted matrices, by the base's tensor names, sorted."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(B · scaling, A) of one matrix in float32, [out, r] and [r, in]; of rank 0 where the adapter has none.

        Args:
            name: The base's name of the matrix, such as "model.layers.0.self_attn.q_proj.weight".

        Raises:
            InvalidInputError: A factor holds NaN or Inf.
        """
        import torch

        if name not in self.matrices:
            out, inputs = self._base.tensors[name].shape
            return torch.zeros(out, 0), torch.zeros(0, inputs)
        found = self.matrices[name]
        a, b = self._read(found.a), self._read(found.b)
        return b * found.scaling, a

    def finish(self) -> None:
        """Compare what was read with the digests that the source has recorded; raises IntegrityError."""
        self._reader.finish()

    def _read(self, tensor: TensorInfo) -> torch.Tensor:
        import torch

        from cycleqd.weights.tensors import NotFiniteError, finite, from_bytes

        data = from_bytes(self._reader.read(tensor.file, tensor.start, tensor.stop), tensor.dtype)
        try:
            return finite(data).to(torch.float32).view(tensor.shape)
        except NotFiniteError as error:
            raise InvalidInputError(
                f"{tensor.name} in {self.location}/{tensor.file} holds NaN or Inf; the adapter is broken."
            ) from error


def is_adapter(files: Mapping[str, int]) -> bool:
    """Whether a folder is a PEFT adapter; one that also holds a full model's weights counts as the model.

    Args:
        files: Name and size of each of its files.
    """
    return CONFIG in files and not any(n.endswith(".safetensors") and not n.startswith("adapter_") for n in files)


def open_adapter(source: Source, base: Checkpoint) -> LoraAdapter:
    """Read an adapter's configuration and header, and check that it is B A on matrices of this base.

    Args:
        source: The adapter's folder.
        base: The model that it was trained on.

    Raises:
        InvalidInputError: It is incomplete, of a kind that is refused, or does not fit the base; one sentence.
    """
    where, sizes, reader = source.location, source.files(), VerifiedReader(source)
    config = parse_config(_config(reader, sizes, where), where)
    sides = _sides(_header(reader, sizes, where), where)
    matrices = {}
    for module in sorted(sides):
        name = _target(module, base, where)
        matrices[name] = _factors(module, sides[module], base.tensors[name], config, where)
    return LoraAdapter(source, reader, base, config, matrices)


def warnings(adapter: LoraAdapter, base_path: str) -> list[str]:
    """What a user should know of an adapter that is not refused, as clauses.

    Args:
        adapter: The opened adapter.
        base_path: The configured base: a path, an s3:// URL or a name on Hugging Face.
    """
    base = adapter.config.base
    found = []
    if base and _short(base) != _short(base_path):
        found.append(f"{adapter.location} says that it was trained on {base}, not on {base_path}")
    if _QUANTISED.search(_short(base)):
        found.append(f"{adapter.location} was trained on a quantised base ({base}) and may score lower on {base_path}")
    return found


def _short(path: str) -> str:
    """The last part of a model's path or id, in lower case; the model's name for a folder of Hugging Face's cache."""
    parts = PurePosixPath(path.lower()).parts
    cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    return (cached or list(parts) or [""])[-1]


def _config(reader: VerifiedReader, sizes: Mapping[str, int], where: str) -> dict[str, Any]:
    if CONFIG not in sizes:
        raise InvalidInputError(f"{where} has no {CONFIG}; a PEFT adapter's folder is expected.")
    return read_object(reader.read, where, CONFIG, sizes[CONFIG])


def _header(reader: VerifiedReader, sizes: Mapping[str, int], where: str) -> list[TensorInfo]:
    if WEIGHTS not in sizes and _PICKLE in sizes:
        raise InvalidInputError(
            f"The adapter {where} is pickled ({_PICKLE}), which can run code; if you trust it, save it as safetensors: "
            f'python -c "from peft import AutoPeftModelForCausalLM as M; '
            f'M.from_pretrained({where!r}).save_pretrained({where + "-safetensors"!r})".'
        )
    if WEIGHTS not in sizes:
        raise InvalidInputError(f"The adapter {where} has no {WEIGHTS}; fetch it or save it again.")
    file, size = f"{where}/{WEIGHTS}", sizes[WEIGHTS]
    start = bytes(reader.read(WEIGHTS, 0, min(size, 8)))  # no byte twice: the file is hashed as it is read
    length = header_length(start, file, size)
    return parse_header(bytes(reader.read(WEIGHTS, 8, 8 + length)), file, size, WEIGHTS)


def _sides(tensors: list[TensorInfo], where: str) -> dict[str, dict[str, TensorInfo]]:
    """Module → "A" and "B" → tensor; the names as peft saves them, or with an adapter's name inside."""
    found: dict[str, dict[str, TensorInfo]] = {}
    names = set()
    for tensor in tensors:
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            what = next(what for part, what in _FOREIGN if part in tensor.name)
            raise InvalidInputError(f"The adapter {where} {what.format(tensor.name)}; {MERGE_IT}.")
        if tensor.dtype not in FLOATS:
            raise InvalidInputError(
                f"{tensor.name} in {where}/{WEIGHTS} is stored as {tensor.dtype}; save it in float32 or bfloat16."
            )
        names.add(match["adapter"])
        found.setdefault(match["module"], {})[match["side"]] = tensor
    if len(names) != 1:
        what = f"the adapters {', '.join(sorted(map(str, names)))}" if names else "no LoRA layer"
        raise InvalidInputError(f"{where}/{WEIGHTS} holds {what}; save it again with one trained adapter.")
    return found


def _target(module: str, base: Checkpoint, where: str) -> str:
    """The base's name of the matrix that a module adapts."""
    name = f"{module}.weight"
    last = module.rpartition(".")[2]
    if any(part in last for part in _EMBEDDINGS):
        what = f"adapts an embedding ({module})"
    elif name not in base.tensors and last == "lm_head" and base.setting("tie_word_embeddings"):
        what = f"adapts {module}, which is tied to the embeddings of {base.location}"
    elif name not in base.tensors:
        near = get_close_matches(name, base.tensors, 3) or sorted(base.tensors)[:3]
        raise InvalidInputError(
            f"The adapter {where} adapts {module}, and {base.location} has no {name} (the nearest are "
            f"{', '.join(near)}); use an adapter of this base."
        )
    elif len(base.tensors[name].shape) != 2 or base.tensors[name].dtype not in FLOATS:
        what = f"adapts {module}, whose weight in {base.location} is no matrix"
    else:
        return name
    raise InvalidInputError(f"The adapter {where} {what}; train it without {last} in target_modules, or {MERGE_IT}.")


def _factors(module: str, sides: Mapping[str, TensorInfo], base: TensorInfo, config: LoraConfig, where: str) -> Located:
    if missing := {"A", "B"} - set(sides):
        raise InvalidInputError(
            f"{where}/{WEIGHTS} lacks lora_{missing.pop()} of {module}; fetch it or save the adapter again."
        )
    rank = config.rank_of(module)
    for side, expected in (("A", (rank, base.shape[1])), ("B", (base.shape[0], rank))):
        if sides[side].shape != expected:
            raise InvalidInputError(
                f"{sides[side].name} in {where}/{WEIGHTS} has the shape {list(sides[side].shape)}, and rank {rank} and "
                f"the base's matrix ask for {list(expected)}; use an adapter of this base, with the {CONFIG} that was "
                "saved with it."
            )
    return Located(sides["A"], sides["B"], config.scaling_of(module))
