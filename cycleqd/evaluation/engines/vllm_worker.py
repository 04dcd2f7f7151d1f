"""Runs inside vLLM's worker process: reads the weights back and compares them with a checkpoint folder.

Swapping weights in a running vLLM has had bugs that left old values in place without an error, so every load is proved.
Kernels may repack a projection's weights, therefore projections are compared by what they compute.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path
from typing import Any

_COLUMNS = 16


class ReadBack:
    """Mixed into vLLM's worker (its `worker_extension_cls`); its methods are called by `collective_rpc`."""

    def end_with(self, owner: int) -> None:
        """End this worker and the engine's process, its parent, as soon as the process `owner` is gone.

        vLLM's processes outlive an owner that was killed, and would keep the device's memory from its next try.
        """
        gone, engine = os.pidfd_open(owner), os.getppid()

        def wait() -> None:
            select.select([gone], [], [])
            if engine != owner:
                os.kill(engine, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=wait, name="end-with-owner", daemon=True).start()

    def differing_weights(self, folder: str) -> list[str]:
        """Names whose values are not the checkpoint's: of repacked projections beyond rounding, of others at all."""
        import torch
        from vllm.model_executor.layers.linear import LinearBase

        model = self.get_model()  # type: ignore[attr-defined]  # of vLLM's worker
        stored = _Stored(Path(folder), getattr(model, "packed_modules_mapping", {}))
        projections = {name: m for name, m in model.named_modules() if isinstance(m, LinearBase)}
        wrong = []
        with torch.inference_mode():
            for name, module in projections.items():
                if not _same_product(module, stored.read(f"{name}.weight")):
                    wrong.append(name)
            for name, parameter in model.named_parameters():
                if name.rpartition(".")[0] in projections and name.endswith(".weight"):
                    continue
                expected = stored.read(name)
                if expected is not None and parameter.numel():
                    rows = parameter[: len(expected)]  # vocabularies are padded
                    if not torch.equal(rows, expected.to(rows)):
                        wrong.append(name)
        return wrong


def _same_product(module: Any, weight: Any) -> bool:
    """Whether the projection multiplies by `weight`, of shape (out, in): exactly where the weight can be read.

    Where it was repacked, 16 of its columns are read by multiplying unit vectors, which is exact, too (a bias is added
    before or after rounding); and a product with all columns may differ by the rounding of its dtype, as a root mean
    square over the outputs.
    """
    import torch

    if weight is None:
        return True
    device, dtype = next(module.parameters()).device, module.params_dtype
    weight = weight.to(device, dtype)
    if module.weight.shape == weight.shape:
        return torch.equal(module.weight, weight)
    bias, eps = getattr(module, "bias", None), torch.finfo(dtype).eps
    columns = torch.linspace(0, weight.shape[1] - 1, _COLUMNS, device=device).round().long()
    units = torch.nn.functional.one_hot(columns, weight.shape[1]).to(dtype)
    x = torch.cat([units, torch.linspace(-1, 1, weight.shape[1], device=device, dtype=dtype)[None]])
    expected = torch.nn.functional.linear(x, weight, bias).float()
    y = module(x)
    found = (y[0] if isinstance(y, tuple) else y).float()
    read = torch.isclose(found[:-1], expected[:-1], rtol=0 if bias is None else eps, atol=0).all()
    return bool(read and (found[-1] - expected[-1]).norm() <= max(eps / 2, 1e-5) * expected[-1].norm())


class _Stored:
    """The checkpoint's tensors by vLLM's names: a fused projection is the rows of its parts, one after another."""

    def __init__(self, folder: Path, packed: dict[str, list[str]]) -> None:
        from safetensors import safe_open

        self._packed = packed
        self._files: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = safe_open(file, framework="pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def read(self, name: str) -> Any:
        """The tensor, or None where the checkpoint has none of that name."""
        import torch

        if name in self._files:
            return self._files[name].get_tensor(name)
        *path, module, leaf = name.split(".")
        parts = [".".join([*path, part, leaf]) for part in self._packed.get(module, [])]
        if not parts or not all(part in self._files for part in parts):
            return None
        return torch.cat([self._files[part].get_tensor(part) for part in parts])
