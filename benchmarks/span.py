"""What evolution in the span of low-rank experts saves against full checkpoints; ratios of one run, in turn.

python -m benchmarks.span make [--layers 16] [--repeat 3] [--scratch FOLDER]
    one child of two parents (merge and mutate) at the shapes of Llama-3.2-1B and R = 48, random weights: seconds and
    bytes of a bf16 checkpoint against those of a core. With one layer it takes less than a minute.
python -m benchmarks.span evaluate [--engine transformers] [--children 16] [--layers 16] [--repeat 3]
    random adapters of rank 48 of a Llama of SmolLM2-135M's width, on the CPU: all in one call, one after another, and
    as checkpoints that are swapped in one after another
python -m benchmarks.span serve [--rank 48] [--layers 32] [--repeat 3]
    what a server does for a child before vLLM has it: B = Q C and A = Pᵀ, written as an adapter, at the shapes of
    Llama-3.1-8B, of a random basis and core on the disk: seconds, bytes, and the rate that `cycleqd validate` takes
python -m benchmarks.span estimate
    what `cycleqd validate` estimates for examples/llama3: full checkpoints, and adapters of rank 64 extracted from them
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from benchmarks.weights.measuring import measure, work
from benchmarks.weights.models import LARGE, MEGABYTE, SMALL, make_hollow, make_models, model_tensors, size_mb
from cycleqd.cli.validate import cost_lines
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Adapter, Engine, Request, Sampling
from cycleqd.evaluation.task import Message
from cycleqd.run.estimate import estimate
from cycleqd.run.sizes import sizes
from cycleqd.search.config import Config, load
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.storage.inputs import decided
from cycleqd.weights import span
from cycleqd.weights.basis import open_basis
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSink, LocalSource
from cycleqd.weights.plain_adapter import write_adapter

RANK, ROWS, TOKENS = 48, 4, 16
"""Of the adapters; and of an evaluation the prompts a child and the longest reply."""

LLAMA3 = Path(__file__).parents[1] / "examples" / "llama3" / "cycleqd.yaml"
SAMPLES = {"mbpp": (189, 189), "db": (170, 171), "os": (55, 55)}
"""Of examples/llama3's tasks: search and held-out samples."""


def make(scratch: Path, layers: int, repeat: int) -> None:
    """A child's seconds and bytes, dense and as a core. Both are written to files, with their digests."""
    models, out = make_models(scratch / f"small-{layers}", SMALL, layers), scratch / "out"
    parents = write_cores(scratch / f"cores-{layers}", layers)
    dense: list[tuple[float, float]] = []
    core: list[tuple[float, float]] = []
    for number in range(repeat):
        shutil.rmtree(out, ignore_errors=True)
        found = measure(work("fused", str(models), str(out), 2))
        dense.append((found.seconds, found.cpu))
        again = [make_core(parents, scratch) for _ in range(5)]
        core.append((statistics.median(wall for wall, _ in again), statistics.median(cpu for _, cpu in again)))
        print(f"    run {number + 1}: dense {found.seconds:.1f} s, span {core[-1][0]:.3f} s", flush=True)
    print(f"| a child, {layers} layers of Llama-3.2-1B, R = {RANK} | dense | span | ratio |")
    print("|---|---|---|---|")
    for place, name in enumerate(("seconds", "CPU seconds")):
        full, small = [each[place] for each in dense], [each[place] for each in core]
        ratios = [one / other for one, other in zip(full, small, strict=True)]
        print(f"| {name} (medians of {repeat}) | {statistics.median(full):.1f} | {statistics.median(small):.3f}"
              f" | {statistics.median(ratios):,.0f} ({min(ratios):,.0f} to {max(ratios):,.0f}) |")  # fmt: skip
    large, little = size_mb(out), (scratch / "child").stat().st_size / MEGABYTE
    print(f"| MB of the child | {large:,.0f} | {little:.2f} | {large / little:,.0f} |")
    print(f"| MB written, the intermediate with it | {large:,.0f} | {2 * little:.2f} | {large / little / 2:,.0f} |")
    shutil.rmtree(out)


def write_cores(folder: Path, layers: int) -> list[Path]:
    """Two parents' cores, random."""
    folder.mkdir(parents=True, exist_ok=True)
    matrices = [name for name, shape in model_tensors(SMALL, layers).items() if len(shape) == 2 and "layers" in name]
    parents = [folder / "a", folder / "b"]
    for seed, path in enumerate(parents):
        random = torch.Generator().manual_seed(seed)
        found = {name: torch.randn(RANK, RANK, generator=random) for name in matrices}
        path.write_bytes(span.Core("base", "basis", found).to_bytes())
    return parents


def make_core(parents: list[Path], scratch: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of merging and mutating in two stages: the intermediate is written and read again."""
    crossover = Drawn(Mean(), {"omega": [1.0, 0.8]})
    mutation = Drawn(Svd(mode="rescale", embeddings=False), {"seed": 1})
    started, cpu = time.perf_counter(), time.process_time()
    cores = [span.Core.from_bytes(path.read_bytes(), str(path)) for path in parents]
    merged = write(scratch / "merged", span.merge(cores, crossover))
    write(scratch / "child", span.mutate(span.Core.from_bytes(merged.read_bytes(), str(merged)), mutation, threads=2))
    return time.perf_counter() - started, time.process_time() - cpu


def write(path: Path, core: span.Core) -> Path:
    """Write a core and compute its digest."""
    data = core.to_bytes()
    hashlib.sha256(data).hexdigest()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def evaluate(scratch: Path, name: str, layers: int, children: int, repeat: int) -> None:
    """All children as adapters in one call, an adapter after another, and a checkpoint after another."""
    model = make_small(scratch / f"135m-{layers}", layers)
    adapters = [make_adapter(model, scratch / f"adapters-{layers}" / str(number), number) for number in range(children)]
    asked: list[Message] = [
        {"role": "user", "content": f"{'repeat ' * (number % 4)}word {number}"} for number in range(ROWS)
    ]
    settings = engines.EngineSettings(dtype="float32", threads=1, max_context=200, device="cpu")
    served, swapped = engines.create(name, settings), engines.create(name, settings)

    def generate(engine: Engine, wanted: Sequence[tuple[int, str | None]]) -> int:
        sampling = Sampling(TOKENS)
        requests = [Request([text], sampling, adapter, group) for group, adapter in wanted for text in asked]
        return sum(completion.tokens for completion in engine.generate(requests))

    def together() -> int:
        return generate(served, [(number, adapter.digest) for number, adapter in enumerate(adapters)])

    def in_turn() -> int:
        return sum(generate(served, [(number, adapter.digest)]) for number, adapter in enumerate(adapters))

    def checkpoints() -> int:
        tokens = 0
        for number in range(children):  # one content under many digests, so that each is read and swapped in
            swapped.load(model, f"child {number}")
            tokens += generate(swapped, [(number, None)])
        return tokens

    try:
        served.adapt(adapters)
        for engine in (served, swapped):
            engine.load(model, "base")
            generate(engine, [(0, None)])
        together()  # adapters are loaded, and proved, at their first use
        contenders = {"one call": together, "adapters in turn": in_turn, "checkpoints in turn": checkpoints}
        report(name, contenders, repeat)
    finally:
        served.close()
        swapped.close()


def serve(scratch: Path, rank: int, layers: int, repeat: int) -> None:
    """A child's adapter in bfloat16 by one thread, from a core and a basis on the disk."""
    torch.set_num_threads(1)
    shapes = {n: s for n, s in model_tensors(LARGE, layers).items() if len(s) == 2 and "layers" in n}
    basis, out, random = scratch / "basis", scratch / "adapter", torch.Generator().manual_seed(0)
    sides = {
        n: (torch.randn(o, rank, generator=random), torch.randn(i, rank, generator=random))
        for n, (o, i) in shapes.items()
    }
    basis.mkdir(exist_ok=True)
    save_file(
        {f"{n}.{side}": m for n, pair in sides.items() for side, m in zip("QP", pair, strict=True)},
        basis / "basis-00001.safetensors",
    )
    core = span.Core("base", "basis", {n: torch.randn(rank, rank, generator=random) for n in shapes}).to_bytes()
    del sides
    print(f"| {layers} layers, rank {rank} | seconds | CPU seconds | MB of the folder | MB a CPU second |")
    print("|---|---|---|---|---|")
    for number in range(repeat):
        shutil.rmtree(out, ignore_errors=True)
        started, cpu = time.perf_counter(), time.process_time()
        found = span.low_rank(open_basis(LocalSource(basis)), span.Core.from_bytes(core, "core"))
        written = write_adapter(LocalSink(out), found, "base", torch.bfloat16).size
        wall, spent = time.perf_counter() - started, time.process_time() - cpu
        megabytes = written / MEGABYTE
        print(
            f"| run {number + 1} | {wall:.2f} | {spent:.2f} | {megabytes:.0f} | {megabytes / spent:.0f} |", flush=True
        )
    shutil.rmtree(basis)
    shutil.rmtree(out)


def report(name: str, contenders: Mapping[str, Callable[[], int]], repeat: int) -> None:
    """Run the contenders in turn; print the medians of what each takes, and how much faster the first is."""
    found: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
    tokens = {}
    for _ in range(repeat):
        for contender, job in contenders.items():
            started, cpu = time.perf_counter(), cpu_seconds()
            tokens[contender] = job()
            found[contender].append((time.perf_counter() - started, cpu_seconds() - cpu))
    first = next(iter(contenders))
    print(f"| {name} | tokens | seconds | CPU seconds | one call is faster by | and takes less CPU by |")
    print("|---|---|---|---|---|---|")
    for contender, spent in found.items():
        share = tokens[first] / tokens[contender]  # random models may end replies at other places
        cells = [f"{statistics.median(each[place] for each in spent):.1f}" for place in (0, 1)]
        for place in (0, 1):
            ratios = [share * one[place] / other[place] for one, other in zip(spent, found[first], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {contender} | {tokens[contender]} | {' | '.join(cells)} |", flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that live, which an engine works in."""
    this = psutil.Process()
    times = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return sum(float(each.user + each.system) for each in times)


def make_small(folder: Path, layers: int) -> Path:
    """A Llama of SmolLM2-135M's width with random weights, float32, and the tokenizer of examples/tiny."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from examples.tiny.make_models import save, tokenizer

    if not folder.exists():
        tokens = tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
        save(LlamaForCausalLM(config), tokens, folder)
    return folder


def make_adapter(model: Path, folder: Path, seed: int) -> Adapter:
    """A random adapter of rank 48 on every matrix of the layers."""
    random = torch.Generator().manual_seed(seed)
    shapes = {n: t.shape for n, t in open_checkpoint(LocalSource(model)).tensors.items() if len(t.shape) == 2}
    factors = {
        name: (0.02 * torch.randn(out, RANK, generator=random), 0.02 * torch.randn(RANK, inputs, generator=random))
        for name, (out, inputs) in shapes.items()
        if "layers" in name
    }
    shutil.rmtree(folder, ignore_errors=True)
    return Adapter(write_adapter(LocalSink(folder), factors, "base").digest, folder)


def estimates() -> None:
    """The published setting, and the same in the span with one child and with sixteen a generation."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_hollow(Path(folder), LARGE, 32)
        for rank, children, generations in ((None, 1, 1200), (64, 1, 1200), (64, 16, 75), (64, 16, 1200)):
            config = published(base, rank, children, generations)
            opened = {name: open_checkpoint(LocalSource(base)) for name in ("base", *config.models.experts)}
            samples = {task: {"search": search, "test": test} for task, (search, test) in SAMPLES.items()}
            cost = estimate(config, sizes(config, opened), {}, samples, {})
            form = f"adapters of rank {rank}" if rank else "full checkpoints"
            print(f"{form}, {generations} generations of {children} child{'ren' if children > 1 else ''}")
            print("\n".join(f"  {line}" for line in cost_lines(cost)))


def published(model: Path, rank: int | None, children: int, generations: int) -> Config:
    """examples/llama3 with models that are all as large as this one."""
    config = load(LLAMA3)
    experts = {name: expert.model_copy(update={"path": str(model)}) for name, expert in config.models.experts.items()}
    models = config.models.model_copy(update={"base": str(model), "experts": experts, "rank": rank})
    method = config.method.model_copy(update={"children": children, "generations": generations})
    return decided(config.model_copy(update={"models": models, "method": method}), None)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["make", "evaluate", "serve", "estimate"])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cycleqd-benchmark")
    parser.add_argument("--layers", type=int, help="default: 16, for serve 32")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--children", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    options = parser.parse_args()
    if options.part == "estimate":
        estimates()
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.part == "make":
        make(options.scratch, options.layers or 16, options.repeat)
    elif options.part == "serve":
        serve(options.scratch, options.rank, options.layers or 32, options.repeat)
    else:
        evaluate(options.scratch, options.engine, options.layers or 16, options.children, options.repeat)


if __name__ == "__main__":
    main()
