"""Runs inside vLLM's worker process: reads weights and adapters back and compares them with their files.

Swapping weights in a running vLLM has had bugs that left old values in place without an error, so every load is proved.
Kernels may repack a projection's weights, therefore projections are compared by what they compute. Where a model is
divided among GPUs, each worker compares its part.
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

        Args:
            owner: Process id.
        """
        gone, engine = os.pidfd_open(owner), os.getppid()

        def wait() -> None:
            select.select([gone], [], [])
            if engine != owner:
                os.kill(engine, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=wait, name="end-with-owner", daemon=True).start()

    def differing_weights(self, folder: str) -> list[str]:
        """Names whose values are not the checkpoint's: of repacked projections beyond rounding, of others at all.

        Args:
            folder: The checkpoint's.
        """
        import torch
        from vllm.model_executor.layers.linear import LinearBase

        model = self.get_model()  # type: ignore[attr-defined]  # of vLLM's worker
        stored = _Stored(Path(folder), getattr(model, "packed_modules_mapping", {}))
        projections = {_plain(name): m for name, m in model.named_modules() if isinstance(m, LinearBase)}
        wrong = []
        with torch.inference_mode():
            for name, module in projections.items():
                whole = stored.read(f"{name}.weight")
                if whole is not None and not _same_product(module, _part(module, whole)):
                    wrong.append(name)
            vocabularies = {
                f"{_plain(name)}.weight": m for name, m in model.named_modules() if hasattr(m, "shard_indices")
            }
            for wrapped, parameter in model.named_parameters():
                name = _plain(wrapped)
                if name.rpartition(".")[0] in projections and name.endswith(".weight"):
                    continue
                expected = stored.read(name)
                if expected is not None and parameter.numel():
                    if name in vocabularies:
                        part = vocabularies[name].shard_indices
                        expected = expected[part.org_vocab_start_index : part.org_vocab_end_index]
                    rows = parameter[: len(expected)]  # vocabularies are padded
                    if not torch.equal(rows, expected.to(rows)):
                        wrong.append(name)
        return wrong

    def differing_adapter(self, number: int, digest: str, folder: str) -> list[str]:
        """Modules in which an adapter that was just loaded is not its folder's to the bit.

        A module that the folder does not adapt must hold zeros; one that vLLM does not adapt is named, too. On a CPU
        so must the last slot, which vLLM takes for rows without an adapter: its index for them is -1.

        Args:
            number: vLLM's id of the adapter.
            digest: The adapter's.
            folder: The adapter's.
        """
        from cycleqd.evaluation.engines import Adapter
        from cycleqd.evaluation.engines.common.adapter import AdapterFolder

        manager = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]  # of vLLM's worker
        slot = manager.lora_index_to_id.index(number)
        matrices = {name: (a, b) for name, a, b in AdapterFolder.open(Adapter(digest, Path(folder))).matrices()}
        wrong = []
        for name, module in manager.modules.items():
            *path, leaf = name.split(".")
            parts = [".".join([*path, part]) for part in manager.packed_modules_mapping.get(leaf, [leaf])]
            stacks = (module.lora_a_stacked, module.lora_b_stacked)  # of all slots; where parts are fused, one a part
            held = list(zip(*(stack if isinstance(stack, tuple) else (stack,) for stack in stacks), strict=True))
            pairs = _own(module, [matrices.pop(part, None) for part in parts])
            if len(held) != len(parts) or not all(
                _same_matrices(a[slot], b[slot], pair)
                and (a.device.type != "cpu" or _same_matrices(a[-1], b[-1], None))
                for (a, b), pair in zip(held, pairs, strict=True)
            ):
                wrong.append(name)
        return wrong + sorted(matrices)


def _plain(name: str) -> str:
    """A module's or parameter's own name, where an engine with adapters has wrapped it."""
    return name.replace(".base_layer", "")


def _own(module: Any, pairs: list[tuple[Any, Any] | None]) -> list[tuple[Any, Any] | None]:
    """What a worker has of the matrices of a module's parts: vLLM's own layer divides them."""
    if getattr(module, "tp_size", 1) == 1 or not hasattr(module, "slice_lora_a"):
        return pairs
    a, b = ([pair[side] if pair is not None else None for pair in pairs] for side in (0, 1))
    if len(pairs) > 1:
        a, b = module.slice_lora_a(a), module.slice_lora_b(b)
    elif pairs[0] is not None:
        a, b = [module.slice_lora_a(a[0])], [module.slice_lora_b(b[0])]
    return [None if pair is None else both for pair, both in zip(pairs, zip(a, b, strict=True), strict=True)]


def _part(module: Any, whole: Any) -> Any:
    """The rows, or columns, that a worker has of a projection's weight, of shape (out, in)."""
    import torch
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear

    rank, number = module.tp_rank, module.tp_size
    if number == 1:
        return whole
    if isinstance(module, RowParallelLinear):
        return whole.chunk(number, dim=1)[rank]
    if isinstance(module, QKVParallelLinear):  # several workers may have the same heads of keys and values
        queries, others = module.total_num_heads * module.head_size, module.total_num_kv_heads * module.head_size
        q, *kv = whole.split((queries, others, others))
        of_kv = number // module.num_kv_head_replicas
        return torch.cat([q.chunk(number)[rank], *(m.chunk(of_kv)[rank // module.num_kv_head_replicas] for m in kv)])
    if isinstance(module, ColumnParallelLinear):
        sizes = getattr(module, "output_sizes", [module.output_size])
        return torch.cat([part.chunk(number)[rank] for part in whole.split(sizes)])
    return whole


def _same_matrices(a: Any, b: Any, pair: tuple[Any, Any] | None) -> bool:
    """Whether a slot's matrices, padded with zeros to the engine's rank, are an adapter's pair, or all zeros."""
    import torch

    for slot, wanted in zip((a, b), pair or (None, None), strict=True):
        held = slot.view(slot.shape[-2:])
        expected = torch.zeros_like(held)
        if wanted is not None:
            expected[: wanted.shape[0], : wanted.shape[1]] = wanted.to(held)
        if not torch.equal(held, expected):
            return False
    return True


def _same_product(module: Any, weight: Any) -> bool:
    """Whether the projection multiplies by `weight`, of shape (out, in): exactly where the weight can be read.

    Where it was repacked, 16 of its columns are read by multiplying unit vectors, which is exact, too (a bias is added
    before or after rounding); and a product with all columns may differ by the rounding of its dtype, as a root mean
    square over the outputs.
    """
    import torch

    device, dtype = next(module.parameters()).device, module.params_dtype
    weight = weight.to(device, dtype)
    if module.weight.shape == weight.shape:
        return torch.equal(module.weight, weight)
    bias, eps = getattr(module, "bias", None), torch.finfo(dtype).eps
    columns = torch.linspace(0, weight.shape[1] - 1, _COLUMNS, device=device).round().long()
    units = torch.nn.functional.one_hot(columns, weight.shape[1]).to(dtype)
    x = torch.cat([units, torch.linspace(-1, 1, weight.shape[1], device=device, dtype=dtype)[None]])
    expected = torch.nn.functional.linear(x, weight, bias).float()
    found = module.quant_method.apply(module, x, bias).float()  # not the module itself, which adds up workers' products
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
