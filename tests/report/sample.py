"""Reports to render without a store: an evolution of the synthetic world, judged on drawn samples."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cycleqd.report.data import Cost, Origin, ReportData, Split, Tally
from cycleqd.search import state
from cycleqd.search.records import Child
from tests.search.world import TASKS, World, config

SAMPLES: dict[Split, int] = {"search": 200, "test": 240}
SECONDS = {
    "seed": 4.2,
    "select parents": 3.1,
    "merge": 41.0,
    "evaluate": 310.5,
    "update archives": 9.7,
    "aggregate": 1.4,
}
ORIGIN = Origin(
    began=1_700_000_000_000,
    ended=1_700_003_600_000,
    versions=("0.2.0",),
    libraries=("numpy 2.4.0", "torch 2.13.0"),
    machines=("x86_64 (avx2, avx512f) with cuda",),
    images=("registry.example/cycleqd/evaluate@sha256:00",),
)


def verdicts(key: str, score: float, count: int) -> Tally:
    """Drawn verdicts: every sample has one difficulty for all models, as real ones have."""
    task = key.split("/")[1]
    difficulty = np.random.default_rng(zlib.crc32(task.encode())).permutation(np.linspace(0.0, 1.0, count))
    noise = np.random.default_rng(zlib.crc32(key.encode())).normal(0, 0.12, count)
    return Tally("".join("01"[bool(d + n < score)] for d, n in zip(difficulty, noise, strict=True)))


def judged(
    world: World, models: Sequence[str], tasks: Sequence[str], watched: Mapping[str, float]
) -> dict[Split, dict[str, dict[str, Tally]]]:
    """Verdicts of both splits by model and task; of watched tasks on held-out samples, for what they are scored for."""
    results: dict[Split, dict[str, dict[str, Tally]]] = {
        split: {
            name: {task: verdicts(f"{name}/{task}/{split}", world.scored(name).scores[task], count) for task in tasks}
            for name in models
        }
        for split, count in SAMPLES.items()
    }
    for task, ratio in watched.items():
        for name in ("base", *(f"expert-{t}" for t in tasks), "final"):
            factor = 1.0 if name == "base" else ratio if name == "final" else ratio - 0.15
            results["test"][name][task] = verdicts(f"{name}/{task}/test", 0.5 * factor, 300)
    return results


def report(
    method: Mapping[str, Any] | None = None, tasks: Sequence[str] = TASKS, watched: Mapping[str, float] | None = None
) -> ReportData:
    """A whole evolution; `watched`: report-only tasks and the final model's ratio to the base on them."""
    fixed = {"generations": 60, "mutation": {"mode": "rescale"}, "final": {"kind": "softmax"}}
    settings = config({**fixed, **(method or {})}, tasks=tasks, seed=5)
    world = World(settings)
    children: dict[str, Child] = {}
    snapshot = world.seeded()
    while state.should_stop(settings, snapshot) is None:
        plan = state.planned(settings, snapshot)
        children |= {child.id: child for child in plan.children}
        snapshot = state.updated(settings, snapshot, plan, [world.born(child) for child in plan.children])
    snapshot = replace(snapshot, digest="5e" * 32)
    recipe = tuple((ref.id, beta) for ref, beta in state.final_recipe(settings, snapshot))
    world.skills["final"] = np.sum([beta * world.skills[name] for name, beta in recipe], axis=0)
    world.skills["naive"] = np.mean([world.skills[f"expert-{task}"] for task in tasks], axis=0)
    world.skills["lambda-0.4"] = 0.4 * np.sum([world.skills[f"expert-{task}"] for task in tasks], axis=0)
    best = max(state.alive(settings, snapshot), key=lambda line: state.average(line.scores)).model.id
    compared = ["base", *(f"expert-{task}" for task in tasks), "naive", "lambda-0.4", best, "final"]
    results = judged(world, compared, tasks, watched or {})
    shown = settings
    if watched:
        extra = {task: settings.tasks[tasks[0]].model_copy(update={"report_only": True}) for task in watched}
        shown = settings.model_copy(update={"tasks": {**settings.tasks, **extra}})
    cost = Cost(len(snapshot.history) * len(tasks), 200 * 180, SECONDS, 156_000_000, 610_000_000, 88_000_000)
    return ReportData(
        config=shown,
        state=snapshot,
        results=results,
        tuned="lambda-0.4",
        recipe=recipe,
        final_snapshot=snapshot.generation,
        best=best,
        children=children,
        cost=cost,
        origin=ORIGIN,
        url="s3://cycleqd/tiny/",
    )
