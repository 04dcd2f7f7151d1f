"""Read the arguments, run one part."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import benchmarks.weights
from benchmarks.weights.checkpoints import part_local, part_memory, part_mergekit, part_s3


def main() -> None:
    """One part, with its figures on standard output."""
    parser = argparse.ArgumentParser(
        description=benchmarks.weights.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["mergekit", "local", "s3", "memory", "svd", "accuracy"])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cycleqd-benchmark")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.part in ("svd", "accuracy"):
        from benchmarks.weights import matrices  # with torch, which the parent of measured processes does without

        matrices.part_svd(options.repeats) if options.part == "svd" else matrices.part_accuracy()
    elif options.part == "memory":
        part_memory(options.scratch)
    else:
        part = {"mergekit": part_mergekit, "local": part_local, "s3": part_s3}[options.part]
        part(options.scratch, options.layers, options.repeats)


if __name__ == "__main__":
    main()
