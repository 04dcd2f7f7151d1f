"""Which tensors of a model an adapter carries, by their names and shapes; no tensor is read."""

from __future__ import annotations

from cycleqd.weights.checkpoint import FLOATS, Checkpoint

MATRIX = "matrices"
"""The kind of tensors that an adapter carries."""

_ROUTERS = (".gate.weight", ".router.weight", "_gate.weight")


def carried_by_none(base: Checkpoint) -> list[str]:
    """The tensors of floats that an adapter extracted from a full model leaves out.

    Args:
        base: The base of the model.
    """
    return [name for name, tensor in base.tensors.items() if tensor.dtype in FLOATS and kind_of(base, name) != MATRIX]


def kind_of(base: Checkpoint, name: str) -> str:
    """What a tensor is to an adapter: MATRIX where it can carry it, else a kind of those that it drops.

    Args:
        base: The model.
        name: The tensor's name.
    """
    tensor, last = base.tensors[name], name.rpartition(".")[2]
    if base.is_embedding(name):
        return "heads" if "head" in name else "embeddings"
    if ".experts." in name or (len(tensor.shape) > 2 and "expert" in name):
        return "fused experts"  # transformers 5 fuses those that are stored one by one, too
    if name.endswith(_ROUTERS):
        return "routers"
    if len(tensor.shape) == 2 and last == "weight":
        return MATRIX
    if last == "bias":
        return "biases"
    return "norms" if "norm" in name or ".ln_" in name else "others"
