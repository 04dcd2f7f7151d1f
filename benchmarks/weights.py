"""How fast and in how much memory weights are merged and mutated: the figures of docs/performance.md.

python -m benchmarks.weights PART [--scratch FOLDER] [--layers 16] [--repeats 3]
  mergekit   merge of two experts against mergekit (in a virtual environment of its own), alternating
  local      merge, mutate and fused with local files, against a raw copy of the same bytes
  s3         merge, mutate and fused from and to SeaweedFS, against boto3's transfers of the same bytes
  memory     peak memory of merge and fused for 2, 4 and 8 layers, and for 2 layers of an 8B
  svd        the SVD mutation against torch.linalg.svd, a matrix shape at a time
  accuracy   the SVD mutation, and fp32's own SVD, against float64; the 128k rows of an embedding take minutes
  gpu        merge and mutate of layers of an 8B on CUDA; says so where there is none

Checkpoints with the shapes of Llama-3.2-1B (or of an 8B) are made under the scratch folder and kept for the next run.
Every measured run is a process of its own, whose peak memory is read from its rusage; contenders alternate, medians are
shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    kv: int
    vocabulary: int
    heads: int
    tied: bool


SMALL = Shape(2048, 8192, 512, 128_256, 32, tied=True)  # Llama-3.2-1B, 16 layers
LARGE = Shape(4096, 14_336, 1024, 128_256, 32, tied=False)  # Llama-3.1-8B, 32 layers


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds of the work itself, CPU seconds, peak memory (ru_maxrss, mapped files included)."""

    seconds: float
    cpu: float
    peak_mb: float


def model_tensors(shape: Shape, layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes in the order of a Hugging Face checkpoint."""
    h, f, kv = shape.hidden, shape.intermediate, shape.kv
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, h)}
    layer: Mapping[str, tuple[int, ...]] = {
        "input_layernorm": (h,), "mlp.down_proj": (h, f), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h),
        "post_attention_layernorm": (h,), "self_attn.k_proj": (kv, h), "self_attn.o_proj": (h, h),
        "self_attn.q_proj": (h, h), "self_attn.v_proj": (kv, h),
    }  # fmt: skip
    for number in range(layers):
        tensors |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    tensors["model.norm.weight"] = (h,)
    return tensors if shape.tied else {**tensors, "lm_head.weight": (shape.vocabulary, h)}


def make_models(folder: Path, shape: Shape, layers: int) -> Path:
    """base, expert a and expert b, made once, in a process of its own: a child's peak memory begins at its parent's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_make_models, folder, shape, layers).result()


def _make_models(folder: Path, shape: Shape, layers: int) -> Path:
    """bf16, at most four shards each."""
    from cycleqd.weights.headers import TensorInfo
    from cycleqd.weights.layout import INDEX, index_json, plan_shards

    tensors = model_tensors(shape, layers)
    sizes = {name: 2 * _product(size) for name, size in tensors.items()}
    infos = [TensorInfo(name, "BF16", size, "", 0, sizes[name]) for name, size in tensors.items()]
    shards = plan_shards(infos, max(sum(sizes.values()) // 4 + 64 * MEGABYTE, max(sizes.values())))
    for seed, model in enumerate(("base", "a", "b")):
        if (folder / model / "config.json").exists():
            continue
        (folder / model).mkdir(parents=True, exist_ok=True)
        for shard in shards:
            with (folder / model / shard.name).open("wb") as file:
                file.write(shard.header)
                for tensor in shard.tensors:
                    _write_random(file, tensor.nbytes // 2, seed)
        if len(shards) > 1:
            (folder / model / INDEX).write_bytes(index_json(shards))
        (folder / model / "config.json").write_text(json.dumps(_config(shape, layers)))
    return folder


def _product(size: tuple[int, ...]) -> int:
    result = 1
    for side in size:
        result *= side
    return result


def _write_random(file: Any, count: int, seed: int) -> None:
    """`count` normal weights, the same 16 million over and over."""
    values = _weights(seed)
    for start in range(0, count, len(values) // 2):
        file.write(values[: 2 * (count - start)])


@cache
def _weights(seed: int) -> Any:
    """Deviation 0.02 for the base, a tenth of that beside it for an expert."""
    import torch

    base = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02
    other = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed)) * (0.002 if seed else 0.0)
    return (base + other).bfloat16().view(torch.uint8).numpy()


def _config(shape: Shape, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv * shape.heads // shape.hidden, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def size_mb(folder: Path) -> float:
    """Megabytes (10^6) of a model's tensors."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / MEGABYTE


def forget(folder: Path) -> None:
    """Write a folder's dirty pages back and drop it from the page cache, so that the next read comes from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command: list[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Run a process to its end. One that prints a JSON object with "seconds" has timed itself, without its start."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    last = text.strip().splitlines()[-1] if text.strip() else ""
    seconds = json.loads(last)["seconds"] if last.startswith("{") else elapsed
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MEGABYTE)


def alternate(contenders: Mapping[str, Callable[[], Measured]], repeats: int) -> dict[str, Measured]:
    """Run the contenders in turn `repeats` times; the median of each figure."""
    runs: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            runs[name].append(run())
            found = runs[name][-1]
            print(f"    {name}: {found.seconds:.1f} s, {found.cpu:.1f} s CPU, {found.peak_mb:.0f} MB", flush=True)
    fields = ("seconds", "cpu", "peak_mb")
    return {
        name: Measured(*(statistics.median(getattr(run, field) for run in found) for field in fields))
        for name, found in runs.items()
    }


def work(name: str, models: str, out: str, threads: int, device: str = "cpu") -> list[str]:
    """The command of one measured operation (see `operate`)."""
    return [sys.executable, "-m", "benchmarks.weights", "_work", name, models, out, str(threads), device]


def operate(name: str, models: str, out: str, threads: str, device: str, sync: bool) -> None:
    """In a process of its own: merge, linear, mutate, fused or copy; prints its seconds, with a sync if asked."""
    from cycleqd.weights.aggregate import combine
    from cycleqd.weights.checkpoint import open_checkpoint
    from cycleqd.weights.merge import merge
    from cycleqd.weights.mutation import MutationSpec

    started = time.perf_counter()
    if name == "copy":
        _copy(models, out)
    else:
        sink = _sink(out)
        base, a, b = (open_checkpoint(_source(f"{models}/{model}")) for model in ("base", "a", "b"))
        spec = MutationSpec(embeddings=False)
        options: dict[str, Any] = {"threads": int(threads), "shard_size": 700 * MEGABYTE}
        if name == "arithmetic":
            combine(base, [a, b], [0.5, 0.4], sink, **options)
        elif name == "linear":
            combine(base, [a, b], [0.5, 0.5], sink, method="linear", **options)
        else:
            parents, omega = ([a], [1.0]) if name == "mutate" else ([a, b], [1.0, 0.8])
            mutation = None if name == "merge" else spec
            merge(base, parents, omega, sink, mutation=mutation, seed=1, device=device, **options)
    for path in Path(out).iterdir() if sync and not out.startswith("s3://") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    print(json.dumps({"seconds": time.perf_counter() - started}))


def _client() -> Any:
    from components.shared.settings import Settings
    from components.shared.store.objects import connect_client

    return connect_client(Settings.from_environment({"MLFLOW_TRACKING_URI": "none", **os.environ}))


def _source(place: str) -> Any:
    from components.shared.store.checkpoints import S3Source
    from cycleqd.weights.local import LocalSource

    if not place.startswith("s3://"):
        return LocalSource(place)
    bucket, prefix = place.removeprefix("s3://").split("/", 1)
    return S3Source(_client(), bucket, prefix)


def _sink(place: str) -> Any:
    from components.shared.store.checkpoints import S3Sink
    from cycleqd.weights.local import LocalSink

    if not place.startswith("s3://"):
        return LocalSink(place)
    bucket, prefix = place.removeprefix("s3://").split("/", 1)
    return S3Sink(_client(), bucket, prefix)


def _copy(models: str, out: str) -> None:
    """What a merge moves and nothing else: read both experts, write one. S3: boto3's own multi-threaded transfers."""
    if models.startswith("s3://"):
        _copy_s3(models, out)
        return
    buffer = memoryview(bytearray(8 << 20))
    Path(out).mkdir(parents=True, exist_ok=True)
    for model in ("a", "b"):
        for path in sorted(Path(models, model).glob("*.safetensors")):
            with path.open("rb", buffering=0) as source, Path(out, path.name).open("ab", buffering=0) as target:
                while count := source.readinto(buffer):
                    if model == "a":
                        target.write(buffer[:count])


def _copy_s3(models: str, out: str) -> None:
    client, (bucket, prefix) = _client(), models.removeprefix("s3://").split("/", 1)
    with tempfile.TemporaryDirectory(dir=os.environ["CYCLEQD_SCRATCH"]) as folder:
        for model in ("a", "b"):
            for name in (n for n in _source(f"{models}/{model}").files() if n.endswith(".safetensors")):
                path = Path(folder, name)
                client.download_file(bucket, f"{prefix}/{model}/{name}", str(path))
                if model == "b":
                    client.upload_file(str(path), bucket, f"{out.removeprefix(f's3://{bucket}/')}/{name}")
                path.unlink()


def part_mergekit(scratch: Path, layers: int, repeats: int) -> None:
    """task_arithmetic and linear, warm files, ours against mergekit's fastest CPU settings."""
    models = make_models(scratch / f"small-{layers}", SMALL, layers)
    program = _mergekit(scratch)
    print(f"merge of two experts, {layers} layers of Llama-3.2-1B, {size_mb(models / 'a'):.0f} MB each, local files")
    for ours, method in (("arithmetic", "task_arithmetic"), ("linear", "linear")):
        recipe = scratch / f"{method}.yaml"
        recipe.write_text(_recipe(models, method))
        out, other = scratch / "out", scratch / "out-mergekit"
        theirs = [program, str(recipe), str(other), "--lazy-unpickle", "--out-shard-size", "700M", "--num-threads", "2",
                  "--no-copy-tokenizer", "--no-write-model-card"]  # fmt: skip
        commands = {"ours": _timed_whole(work(ours, str(models), str(out), 2)), "mergekit": theirs}

        def run(command: list[str], *folders: Path) -> Measured:
            for folder in folders:
                _remove(folder)
            return measure(command, {"HF_HUB_OFFLINE": "1"})

        found = alternate({name: partial(run, command, out, other) for name, command in commands.items()}, repeats)
        a, b = found["ours"], found["mergekit"]
        print(f"  {method}: ours {a.seconds:.1f} s, {a.peak_mb:.0f} MB; mergekit {b.seconds:.1f} s, {b.peak_mb:.0f} MB")
        print(f"  {b.seconds / a.seconds:.1f}x faster, {b.cpu / a.cpu:.1f}x less CPU time, "
              f"{a.peak_mb / b.peak_mb:.2f} of its memory", flush=True)  # fmt: skip


def _timed_whole(command: list[str]) -> list[str]:
    """Time a command with its start and without a sync, as the other side is: its own seconds are not printed."""
    return [*command, "whole"]


def _mergekit(scratch: Path) -> str:
    """mergekit's program, installed on first use."""
    folder = scratch / "mergekit-venv"
    program = folder / "bin" / "mergekit-yaml"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *MERGEKIT], check=True)
    return str(program)


def _recipe(models: Path, method: str) -> str:
    experts = [{"model": str(models / m), "parameters": {"weight": w}} for m, w in (("a", 0.5), ("b", 0.4))]
    if method == "linear":
        return json.dumps({"merge_method": method, "models": experts, "dtype": "bfloat16"})
    recipe = {"merge_method": method, "base_model": str(models / "base"), "models": experts, "dtype": "bfloat16"}
    return json.dumps(recipe)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def part_local(scratch: Path, layers: int, repeats: int) -> None:
    """Merge against a copy, files in memory and from the disk; mutate and fused."""
    models, out = make_models(scratch / f"small-{layers}", SMALL, layers), scratch / "out"
    moved = 3 * size_mb(models / "a")

    def local(name: str, cold: bool) -> Measured:
        _remove(out)
        if cold:
            forget(models)
        return measure(work(name, str(models), str(out), 2))

    for cold, what in ((False, "local, files in memory"), (True, "local, read from the disk")):
        print(f"{what}, {layers} layers; a merge moves {moved:.0f} MB")
        found = alternate({name: partial(local, name, cold) for name in ("copy", "merge")}, repeats)
        _compare(found, moved)
    print(f"mutation, local, {layers} layers")
    alternate({name: partial(local, name, False) for name in ("mutate", "fused")}, 1)


def part_s3(scratch: Path, layers: int, repeats: int) -> None:
    """From and to SeaweedFS here: merge against boto3's own transfers of the same bytes; mutate and fused."""
    from cycleqd.config import Place
    from pipelines.services import running

    models = make_models(scratch / f"small-{layers}", SMALL, layers)
    moved = 3 * size_mb(models / "a")
    with ExitStack() as stack:
        place = Place(services="embedded", folder=str(scratch / "services"))
        environment = {**stack.enter_context(running(place, tracking=False)), "CYCLEQD_SCRATCH": str(scratch)}
        os.environ.update(environment)
        bucket = environment["CYCLEQD_BUCKET"]
        _upload(models, bucket)
        print(f"S3 (SeaweedFS on this machine), {layers} layers; a merge moves {moved:.0f} MB")
        runs = {
            name: partial(measure, work(name, f"s3://{bucket}/models", f"s3://{bucket}/out", 2))
            for name in ("copy", "merge", "mutate", "fused")
        }
        _compare(alternate({name: runs[name] for name in ("copy", "merge")}, repeats), moved)
        alternate({name: runs[name] for name in ("mutate", "fused")}, 1)


def part_memory(scratch: Path) -> None:
    """Peak memory of merge and fused for 2, 4 and 8 layers of Llama-3.2-1B, and 2 of an 8B."""
    out = scratch / "out"
    for label, shape, count in (("small", SMALL, 2), ("small", SMALL, 4), ("small", SMALL, 8), ("large", LARGE, 2)):
        folder = make_models(scratch / f"{label}-{count}", shape, count)
        for name in ("merge", "fused"):
            _remove(out)
            run = measure(work(name, str(folder), str(out), 2))
            print(f"  {label}, {count} layers, {size_mb(folder / 'a'):.0f} MB, {name}: "
                  f"{run.seconds:.1f} s, {run.peak_mb:.0f} MB", flush=True)  # fmt: skip


def _compare(found: Mapping[str, Measured], moved: float) -> None:
    copy, merge = found["copy"], found["merge"]
    print(f"  copy {moved / copy.seconds:.0f} MB/s, merge {moved / merge.seconds:.0f} MB/s: "
          f"{copy.seconds / merge.seconds:.0%} of the copy's speed; peak {merge.peak_mb:.0f} MB")  # fmt: skip


def _upload(models: Path, bucket: str) -> None:
    client = _client()
    for path in sorted(models.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"models/{path.relative_to(models)}")


def part_svd(repeats: int, device: str = "cpu") -> None:
    """One thread and two: the median time of one matrix in alternating runs, after one to warm up."""
    import torch

    from cycleqd.weights.mutation import svd_rescale

    def full(tau: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        u, s, v = torch.linalg.svd(tau, full_matrices=False)
        return torch.matmul(u * (s * w), v)

    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(
            f"SVD mutation of one matrix, {threads} thread(s), {device}: ours against torch.linalg.svd and rebuilding"
        )
        for rows, columns in ((512, 2048), (2048, 512), (2048, 2048), (8192, 2048), (2048, 8192)):
            torch.manual_seed(0)
            tau, w = torch.randn(rows, columns, device=device) * 1e-3, torch.rand(min(rows, columns), device=device) * 2
            times: dict[Any, list[float]] = {svd_rescale: [], full: []}
            for _ in range(repeats + 1):
                for function, seconds in times.items():
                    started = time.perf_counter()
                    result = function(tau, w)
                    float(result[0, 0])  # waits for the device
                    seconds.append(time.perf_counter() - started)
            ours, theirs = (statistics.median(seconds[1:]) for seconds in times.values())
            print(f"  {rows} x {columns}: {ours:.2f} s against {theirs:.2f} s, {theirs / ours:.1f}x", flush=True)


def part_accuracy() -> None:
    """Relative Frobenius error against float64 with the same W, random matrices, one thread.

    The reference is that of the float64 Gram matrix, which for random matrices is as good as a float64 SVD (1e-8).
    """
    import torch

    from cycleqd.weights.mutation import svd_rescale

    torch.set_num_threads(1)
    weights = [(512, 512), (1024, 1024), (2048, 512), (2048, 2048), (8192, 2048)]
    for rows, columns in [*weights, *((128_256, columns) for columns in (64, 576, 2048, 4096))]:
        torch.manual_seed(0)
        tau, w = torch.randn(rows, columns) * 1e-3, torch.rand(columns) * 2
        parts = [slice(first, first + 8192) for first in range(0, rows, 8192)]
        gram = torch.zeros(columns, columns, dtype=torch.float64)
        for part in parts:
            gram += tau[part].double().T @ tau[part].double()
        vectors = torch.linalg.eigh(gram).eigenvectors.flip(-1)
        mix = (vectors * w) @ vectors.T

        ours = svd_rescale(tau, w)
        line = f"  {rows} x {columns}: ours {_error(ours, tau, mix, parts):.1e}"
        if tau.numel() < 1 << 27:
            u, s, v = torch.linalg.svd(tau, full_matrices=False)
            line += f", fp32's own SVD {_error((u * (s * w)) @ v, tau, mix, parts):.1e}"
        print(line, flush=True)


def _error(found: Any, tau: Any, mix: Any, parts: list[slice]) -> float:
    """|found - tau mix| / |tau mix|, a few rows at a time."""
    off = total = 0.0
    for part in parts:
        expected = tau[part].double() @ mix
        off += float((found[part].double() - expected).square().sum())
        total += float(expected.square().sum())
    return float((off / total) ** 0.5)


def part_gpu(scratch: Path, repeats: int) -> None:
    """An 8B-shaped checkpoint of four layers: merge and mutate with matrices on the GPU, beside copy and PCIe."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured; run this part on a machine with one")
        return
    print(torch.cuda.get_device_name())
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    for _ in range(2):
        started = time.perf_counter()
        host.to("cuda")
        torch.cuda.synchronize()
        rate = host.numel() / MEGABYTE / (time.perf_counter() - started)
    print(f"  PCIe, pinned: {rate:.0f} MB/s")
    models, out = make_models(scratch / "large-4", LARGE, 4), scratch / "out"
    moved = 3 * size_mb(models / "a")

    def run(name: str, device: str) -> Measured:
        _remove(out)
        return measure(work(name, str(models), str(out), 8, device))

    found = alternate({n: partial(run, n, "cuda") for n in ("copy", "merge", "mutate", "fused")}, repeats)
    _compare(found, moved)
    for name in ("mutate", "fused"):
        print(f"  {name}: {found[name].seconds - found['merge'].seconds:.1f} s more than the merge; "
              f"{moved / found[name].seconds / rate:.0%} of PCIe")  # fmt: skip
    part_svd(repeats, "cuda")


def main() -> None:
    """Read the arguments, run one part."""
    if sys.argv[1:2] == ["_work"]:
        name, models, out, threads, device, *whole = sys.argv[2:]
        if whole:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the caller times the whole process
        operate(name, models, out, threads, device, sync=not whole)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["mergekit", "local", "s3", "memory", "svd", "accuracy", "gpu"])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cycleqd-benchmark")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.part == "svd":
        part_svd(options.repeats)
    elif options.part == "accuracy":
        part_accuracy()
    elif options.part == "gpu":
        part_gpu(options.scratch, options.repeats)
    elif options.part == "memory":
        part_memory(options.scratch)
    else:
        part = {"mergekit": part_mergekit, "local": part_local, "s3": part_s3}[options.part]
        part(options.scratch, options.layers, options.repeats)


if __name__ == "__main__":
    main()
