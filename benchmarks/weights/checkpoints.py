"""Whole checkpoints: against mergekit, against a copy, from and to S3, and the memory they take."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.weights.measuring import Measured, alternate, compare, forget, measure, work
from benchmarks.weights.models import LARGE, SMALL, make_models, size_mb
from benchmarks.weights.places import client

MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")


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
                shutil.rmtree(folder, ignore_errors=True)
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


def part_local(scratch: Path, layers: int, repeats: int) -> None:
    """Merge against a copy, files in memory and from the disk; mutate and fused."""
    models, out = make_models(scratch / f"small-{layers}", SMALL, layers), scratch / "out"
    moved = 3 * size_mb(models / "a")

    def local(name: str, cold: bool) -> Measured:
        shutil.rmtree(out, ignore_errors=True)
        if cold:
            forget(models)
        return measure(work(name, str(models), str(out), 2))

    for cold, what in ((False, "local, files in memory"), (True, "local, read from the disk")):
        print(f"{what}, {layers} layers; a merge moves {moved:.0f} MB")
        found = alternate({name: partial(local, name, cold) for name in ("copy", "merge")}, repeats)
        compare(found, moved)
    print(f"mutation, local, {layers} layers")
    alternate({name: partial(local, name, False) for name in ("mutate", "fused")}, 1)


def part_s3(scratch: Path, layers: int, repeats: int) -> None:
    """From and to SeaweedFS here: merge against boto3's own transfers of the same bytes; mutate and fused."""
    from cycleqd.run.local.services import running
    from cycleqd.search.place import Place

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
        compare(alternate({name: runs[name] for name in ("copy", "merge")}, repeats), moved)
        alternate({name: runs[name] for name in ("mutate", "fused")}, 1)


def part_memory(scratch: Path) -> None:
    """Peak memory of merge and fused for 2, 4 and 8 layers of Llama-3.2-1B, and 2 of an 8B."""
    out = scratch / "out"
    for label, shape, count in (("small", SMALL, 2), ("small", SMALL, 4), ("small", SMALL, 8), ("large", LARGE, 2)):
        folder = make_models(scratch / f"{label}-{count}", shape, count)
        for name in ("merge", "fused"):
            shutil.rmtree(out, ignore_errors=True)
            run = measure(work(name, str(folder), str(out), 2))
            print(f"  {label}, {count} layers, {size_mb(folder / 'a'):.0f} MB, {name}: "
                  f"{run.seconds:.1f} s, {run.peak_mb:.0f} MB", flush=True)  # fmt: skip


def _upload(models: Path, bucket: str) -> None:
    s3 = client()
    for path in sorted(models.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), bucket, f"models/{path.relative_to(models)}")
