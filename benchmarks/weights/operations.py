"""One operation in a process of its own, which prints its seconds as JSON.

python -m benchmarks.weights.operations NAME MODELS OUT THREADS DEVICE [whole]

NAME is merge, linear, arithmetic, mutate, fused or copy; MODELS holds base, a and b; with `whole` the caller times the
process: nothing is printed and nothing synced.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.weights.models import MEGABYTE
from benchmarks.weights.places import client, sink, source
from cycleqd.search.operators import Drawn
from cycleqd.search.operators.crossover.mean import Mean
from cycleqd.search.operators.mutation.svd import Svd
from cycleqd.weights.aggregate import combine
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.merge import merge, mutate


def operate(name: str, models: str, out: str, threads: int, device: str, sync: bool) -> None:
    """Do it and print its seconds, those of a sync included if asked."""
    started = time.perf_counter()
    if name == "copy":
        _copy(models, out)
    else:
        to = sink(out)
        base, a, b = (open_checkpoint(source(f"{models}/{model}")) for model in ("base", "a", "b"))
        mutation = Drawn(Svd(mode="rescale", embeddings=False), {"seed": 1})
        options: dict[str, Any] = {"threads": threads, "shard_size": 700 * MEGABYTE}
        if name == "arithmetic":
            combine(base, [a, b], [0.5, 0.4], to, **options)
        elif name == "linear":
            combine(base, [a, b], [0.5, 0.5], to, method="linear", **options)
        elif name == "mutate":
            mutate(base, a, mutation, to, device=device, **options)
        else:
            crossover = Drawn(Mean(), {"omega": [1.0, 0.8]})
            merge(base, [a, b], crossover, to, mutation=mutation if name == "fused" else None, device=device, **options)
    for path in Path(out).iterdir() if sync and not out.startswith("s3://") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    print(json.dumps({"seconds": time.perf_counter() - started}))


def _copy(models: str, out: str) -> None:
    """What a merge moves and nothing else: read both experts, write one. S3: boto3's own multi-threaded transfers."""
    if models.startswith("s3://"):
        _copy_s3(models, out)
        return
    buffer = memoryview(bytearray(8 << 20))
    Path(out).mkdir(parents=True, exist_ok=True)
    for model in ("a", "b"):
        for path in sorted(Path(models, model).glob("*.safetensors")):
            with path.open("rb", buffering=0) as stored, Path(out, path.name).open("ab", buffering=0) as copied:
                while count := stored.readinto(buffer):
                    if model == "a":
                        copied.write(buffer[:count])


def _copy_s3(models: str, out: str) -> None:
    s3, (bucket, prefix) = client(), models.removeprefix("s3://").split("/", 1)
    with tempfile.TemporaryDirectory(dir=os.environ["CYCLEQD_SCRATCH"]) as folder:
        for model in ("a", "b"):
            for name in (n for n in source(f"{models}/{model}").files() if n.endswith(".safetensors")):
                path = Path(folder, name)
                s3.download_file(bucket, f"{prefix}/{model}/{name}", str(path))
                if model == "b":
                    s3.upload_file(str(path), bucket, f"{out.removeprefix(f's3://{bucket}/')}/{name}")
                path.unlink()


if __name__ == "__main__":
    operation, checkpoints, target, count, where, *rest = sys.argv[1:]
    if rest:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the caller times the whole process
    operate(operation, checkpoints, target, int(count), where, sync=not rest)
