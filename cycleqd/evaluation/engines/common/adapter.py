"""Adapters as engines read them: a PEFT LoRA folder in one plain form, which leaves nothing to interpret.

adapter_config.json has r = lora_alpha (so W + B A, with no factor), a list of target_modules, and nothing else that
would change the arithmetic. adapter_model.safetensors holds for each adapted module two tensors,
`base_model.model.MODULE.lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank], of a rank up to r.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cycleqd.errors import EvaluationError
from cycleqd.evaluation.engines import Adapter

_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
_NOT_PLAIN = ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "lora_bias")


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter, opened without its weights.

    `rank` is its r. `shapes` has (in, out) of every module that it adapts, by the module's name in the model.
    """

    folder: Path
    rank: int
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def open(cls, adapter: Adapter) -> AdapterFolder:
        """Read configuration and headers.

        Args:
            adapter: Any that claims to be in the plain form.

        Raises:
            EvaluationError: A file is missing or cannot be read, or the adapter is not in the plain form.
        """
        folder = adapter.folder
        try:
            config = json.loads((folder / "adapter_config.json").read_text())
            rank, found = int(config["r"]), dict(_headers(folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{folder}: not a usable adapter folder ({type(error).__name__}: {error})") from error
        odd = [key for key in _NOT_PLAIN if config.get(key)]
        if config.get("lora_alpha") != rank or not isinstance(config.get("target_modules"), list):
            odd.append("lora_alpha or target_modules")
        if odd:
            raise EvaluationError(
                f"{folder}: {', '.join(odd)} of the adapter are not in the plain form (lora_alpha = r, target_modules a"
                f" list, no patterns, no rsLoRA, no DoRA); write it anew from its matrices"
            )
        shapes = {name.removesuffix(_A): name for name in found if name.endswith(_A)}
        pairs = {module: (found[name], found.pop(module + _B, [0, 0])) for module, name in shapes.items()}
        wrong = sorted(found.keys() - shapes.values())
        wrong += [module for module, (a, b) in pairs.items() if not 0 < a[0] == b[1] <= rank or module == _PREFIX]
        wrong += [module for module in pairs if not module.startswith(_PREFIX)]
        if wrong or not pairs:
            raise EvaluationError(
                f"{folder}: adapter_model.safetensors does not hold pairs of lora_A [rank, in] and lora_B [out, rank]"
                f" of rank up to {rank} for modules of the model ({wrong[:3]}); write it anew from its matrices"
            )
        return cls(folder, rank, {m.removeprefix(_PREFIX): (a[1], b[0]) for m, (a, b) in pairs.items()})

    def matrices(self) -> Iterator[tuple[str, Any, Any]]:
        """Every adapted module's name with its A [rank, in] and B [out, rank], as torch tensors."""
        from safetensors import safe_open

        with safe_open(self.folder / "adapter_model.safetensors", framework="pt") as file:
            for module in self.shapes:
                yield module, file.get_tensor(f"{_PREFIX}{module}{_A}"), file.get_tensor(f"{_PREFIX}{module}{_B}")


def _headers(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Every tensor's name and shape."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_slice(name).get_shape()
    except SafetensorError as error:
        raise ValueError(error) from error
