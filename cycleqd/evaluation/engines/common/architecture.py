"""What transformers makes of a model's configuration and of its tensors' names and shapes; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.settings import Settings

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """How stored tensors fit a model class.

    `problem`: why the model cannot be loaded, as a clause; None where it can. `converted`: whether the class has other
    tensors than are stored, which transformers makes of them while it loads them, such as experts fused in one.
    """

    problem: str | None
    converted: bool = False


def fit(config: Any, tensors: Mapping[str, TensorInfo]) -> Fit:
    """Load tensors without values into a model without values, as transformers would load the real ones.

    A tensor without its counterpart would otherwise leave random values or be left out, and no error.

    Args:
        config: The model's configuration, a transformers object.
        tensors: By name, as stored.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        return Fit(f"transformers has no causal language model for its model_type {config.model_type!r}")
    try:
        with _quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            stored = {n: torch.empty(t.shape, dtype=_dtype(t)) for n, t in tensors.items()}
            _, found = type(model).from_pretrained(
                None,
                config=config,
                state_dict=stored,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a class may fail of anything that a configuration holds
        return Fit(f"transformers cannot make its model: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    names = {*found["missing_keys"], *found["unexpected_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if names or found["error_msgs"]:
        shown = sorted(names)[:_SHOWN] or found["error_msgs"][:1]
        return Fit(
            f"{max(len(names), 1)} tensors do not match the architecture in config.json, among them {shown}; the"
            " configuration and the weights do not belong together"
        )
    return Fit(None, converted=not tensors.keys() <= model.state_dict().keys())


def filled(config: Any) -> Settings:
    """A configuration with what its class fills in, and only what the class declares; JSON could hold it.

    Args:
        config: A transformers object.
    """
    declared = {field.name for field in fields(config)} if is_dataclass(config) else config.to_dict().keys()
    values = {name: value for name, value in vars(config).items() if name in declared}
    nested = {name: filled(value) if hasattr(value, "model_type") else value for name, value in values.items()}
    return {"model_type": config.model_type, **nested}


def _dtype(tensor: TensorInfo) -> Any:
    import torch

    return getattr(torch, _DTYPES.get(tensor.dtype, "int64"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what did not fit, and its progress bar."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
