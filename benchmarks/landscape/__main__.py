"""Compare methods and operators on an analytic problem over task vectors: paired differences with intervals.

    python -m benchmarks.landscape [--tasks K …] [--seeds N] [--evaluations N] [--conflict C] [--ruggedness R] …

Every seed is a problem of its own, on which all methods run. Scores in the tables are true ones, in percent, which no
search sees; see benchmarks/landscape/world.py for what a problem is, and docs/landscape.md for what came out.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from benchmarks.landscape import variants
from benchmarks.landscape.evolution import measured
from benchmarks.landscape.tables import Figures, table
from benchmarks.landscape.variants import Method
from benchmarks.landscape.world import Settings, World


def compared(
    methods: Mapping[str, Method], settings: Settings, seeds: int, evaluations: int, pool: ProcessPoolExecutor
) -> dict[str, Figures]:
    """Every method on every seed's problem.

    Args:
        methods: Sections `method` by name.
        settings: What the problems are like.
        seeds: Number of problems.
        evaluations: Children of each evolution.
        pool: Where they run.
    """
    worlds = [World(settings, seed) for seed in range(seeds)]
    running = {
        name: pool.map(measured, repeat(method), worlds, repeat(evaluations)) for name, method in methods.items()
    }
    return {name: list(found) for name, found in running.items()}


def main() -> None:
    """Print a table for each kind of comparison and number of tasks."""
    usual = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 5], help="numbers of tasks; a table for each")
    parser.add_argument("--seeds", type=int, default=20, help="problems, each of a seed; at least 10")
    parser.add_argument("--evaluations", type=int, default=1200, help="children a run")
    parser.add_argument("--conflict", type=float, default=usual.conflict, help="how much tasks hinder each other")
    parser.add_argument("--ruggedness", type=float, default=usual.ruggedness, help="depth of local optima")
    parser.add_argument("--samples", type=int, default=usual.samples, help="samples a task; 0: scores without noise")
    parser.add_argument("--only", choices=["methods", "operators"], help="one of the two comparisons")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    chosen = parser.parse_args()
    if chosen.seeds < 10:
        parser.error(f"--seeds is {chosen.seeds}: intervals need 10 at least")
    kinds = {"methods": variants.methods, "operators": variants.operators}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context) as pool:
        for kind in [chosen.only] if chosen.only else kinds:
            for tasks in chosen.tasks:
                settings = Settings(tasks, chosen.conflict, chosen.ruggedness, chosen.samples)
                found = compared(kinds[kind](), settings, chosen.seeds, chosen.evaluations, pool)
                print(f"### {kind.capitalize()}, K = {tasks}\n\n{table(found, variants.REFERENCE)}", flush=True)


if __name__ == "__main__":
    main()
